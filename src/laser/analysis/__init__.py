"""What the silence gates of a model do, from predictions with gates and the prepared data set. No torch.

gates = GateFile("runs/demo/predictions/test_gates.parquet")     # laser test --gates
silence(gates, [by_recency(), by_match(data, "genres")])[0]      # shows as a table in a notebook
"""

from laser.analysis.cases import item_titles, open_events, tested_runs
from laser.analysis.faithfulness import Effect, effects_table, faithfulness
from laser.analysis.gate_file import GatedSamples, GateFile
from laser.analysis.grouping import Grouping, by_action, by_activity, by_age, by_match, by_recency
from laser.analysis.segments import Segments, segments
from laser.analysis.silence import Silence, silence
from laser.analysis.softmax import Agreement, agreement, implied_softmax
from laser.report.table import Table

__all__ = [
    "Agreement",
    "Effect",
    "GateFile",
    "GatedSamples",
    "Grouping",
    "Segments",
    "Silence",
    "Table",
    "agreement",
    "by_action",
    "by_activity",
    "by_age",
    "by_match",
    "by_recency",
    "effects_table",
    "faithfulness",
    "implied_softmax",
    "item_titles",
    "open_events",
    "segments",
    "silence",
    "tested_runs",
]
