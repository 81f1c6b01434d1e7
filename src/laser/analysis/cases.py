"""One sample, event by event, in words; and what runs are these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from laser.analysis.gate_file import GatedSamples
from laser.analysis.grouping import raw_names
from laser.data.prepared import PreparedData
from laser.report.table import Table
from laser.schema import Kind

DAY = 86400


def item_titles(data: PreparedData, titles: Mapping[str, str]) -> dict[int, str]:
    """A title for each item code: that of its raw id in ``titles``, or the raw id itself."""
    table = pq.read_table(data.path / "items.parquet", columns=[data.schema.item.name, "raw"])
    codes, raws = (table[name].to_pylist() for name in table.column_names)
    return {code: titles.get(str(raw), str(raw)) for code, raw in zip(codes, raws, strict=True)}


def open_events(sample: GatedSamples, data: PreparedData, titles: Mapping[int, str], count: int = 12) -> Table:
    """The events of one sample that the most open gate lets through most, a row each.

    Args:
        sample: one sample.
        data: for names of actions.
        titles: of item codes, see ``item_titles``.
        count: events shown.
    """
    assert len(sample) == 1
    actions = [f for f in data.schema.of_kind(Kind.EVENT_SIDE) if f.length == 1 and f.cardinality]
    names = {f.name: raw_names(data, f.name, f.cardinality or 0) for f in actions}
    rows = []
    for event in np.argsort(-sample.gate_EH.max(axis=1), kind="stable")[:count].tolist():
        cells = [titles[int(sample.events[data.schema.item.name][event])]]
        cells += [names[f.name][int(sample.events[f.name][event])] for f in actions]
        cells += [f"{sample.rank_E[event]}", f"{sample.age_E[event] / DAY:,.1f}"]
        rows.append((*cells, *(f"{gate:.3f}" for gate in sample.gate_EH[event])))
    gates = [f"gate, head {head}" for head in range(sample.gate_EH.shape[1])]
    head = (data.schema.item.name, *(f.name for f in actions), "newer events", "days before", *gates)
    return Table(head, tuple(rows))


def tested_runs(runs: Mapping[str, Path]) -> Table:
    """What each named run is and how it did on the test split, from its ``metrics.json``.

    Raises:
        ValueError: when a run was not tested.
    """
    rows = []
    for name, run in runs.items():
        try:
            content = json.loads((run / "metrics.json").read_text())
        except (OSError, ValueError):
            raise ValueError(f"{run} has no metrics.json; laser test writes it") from None
        model, test = content["model"], content["test"]
        sizes = [f"{model[key]:,}" for key in ("dense_parameters", "table_parameters", "history_length")]
        rows.append(
            (name, *sizes, f"{test['samples']:,.0f}", *(f"{test[key]:.4f}" for key in ("auc", "gauc", "log_loss")))
        )
    head = ("run", "dense parameters", "table parameters", "events at most", "test samples", "AUC", "GAUC", "log-loss")
    return Table(head, tuple(rows))
