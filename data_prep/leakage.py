"""The leakage check: reads a finished data set, as training will, and looks for knowledge of the future.

It trusts nothing that wrote the data set: the store is read through its public interface, samples from their files.
Every sample is compared with its user's whole history, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_prep.leakage_findings import Findings
from data_prep.leakage_histories import Comparison
from data_prep.leakage_outcome import outcome_in_disguise
from data_prep.leakage_samples import SAMPLE_BYTES, SampleFiles
from data_prep.leakage_survey import Survey
from data_prep.recipe import SPLITS
from laser.schema import Schema
from laser.seqvault import SeqVault

MOST_BYTES = 1 << 30
"""Memory for gathered samples where no limit is given."""
PASSES = 2
"""How often ``advance`` is told of each sample: when its file is read, and when it is compared with its history."""


def check_prepared(
    folder: Path,
    report: dict[str, Any],
    advance: Callable[[int], None] = lambda rows: None,
    most_bytes: int = MOST_BYTES,
) -> Findings:
    """Check a finished data set against its own report.

    Args:
        folder: with schema.json, items.parquet, vault/ and samples/.
        report: content of ``report.json``; its ``split``, ``ids``, ``events`` and, per split, ``samples`` and
            ``with_own_event`` are used.
        advance: told the number of finished samples, ``PASSES`` times each.
        most_bytes: memory for gathered samples; what does not fit is gathered in several passes over the files.

    Raises:
        ValueError: when a split has no files.
    """
    schema = Schema.load(folder / "schema.json")
    found, files = Findings(), SampleFiles(folder, schema)
    survey = Survey(schema, report, found)
    for split in SPLITS:
        for rows in files.batches(split, survey.columns):
            survey.see(split, rows)
            advance(len(rows["row"]))
    survey.judge()
    rows = pq.read_metadata(folder / "items.parquet").num_rows
    codes = schema.item.cardinality
    found.add(rows != codes, f"items.parquet has {rows} rows for {codes} item codes")
    with SeqVault.open(folder / "vault") as vault:
        have, wanted = int(vault.stats()["events"]), report["events"]
        found.add(have != wanted, f"histories hold {have} events, the report says {wanted}: some were added or lost")
        comparison = Comparison(vault, schema, report, survey.total, found)
        for gathered in files.by_user(survey.samples_of_users, max(1, most_bytes // SAMPLE_BYTES)):
            comparison.see(gathered, advance)
    comparison.judge()
    found.problems += outcome_in_disguise(folder, schema)
    return found
