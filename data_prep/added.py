"""The report of a data set that was extended: figures of the whole, and what each addition brought."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from data_prep.engine import Engine
from data_prep.items import known_shares
from data_prep.present import Present
from data_prep.recipe import SPLITS
from data_prep.row_columns import LOG_ROW
from data_prep.row_counts import sum_rows
from data_prep.summary import describe_split
from data_prep.writing import Coded
from laser.schema import Schema


def describe_addition(
    engine: Engine,
    present: Present,
    staging: Path,
    schema: Schema,
    items: pa.Table,
    rows: dict[str, Any],
    coded: Coded,
    files: dict[str, str],
) -> dict[str, Any]:
    """The report of the whole before the leakage check.

    Args:
        engine: of the new rows.
        present: the data set as it was.
        staging: folder with all samples, old and new.
        schema: of the whole.
        items: item table of the whole.
        rows: of the new log, from ``data_prep.row_counts``.
        coded: new rows.
        files: of the new log, with their checksums.
    """
    old = present.report
    users, codes = (schema.user.cardinality or 1) - 1, (schema.item.cardinality or 1) - 1
    added = {
        "files": files,
        "rows": rows,
        "users": users - old["users"],
        "items": codes - old["items"],
        "events": coded.events,
        "samples": coded.samples,
        "after": present.end,
    }
    samples = _all_samples(engine, staging)
    return old | {
        "schema": schema.fingerprint(),
        "rows": sum_rows(old["rows"], rows),
        "users": users,
        "items": codes,
        "items_in_log": _items_in_log(present, schema, coded, samples),
        "events": old["events"] + coded.events,
        "side_info_known": known_shares(items, schema),
        "samples": _describe_samples(present, schema, coded, samples),
        "additions": [*old.get("additions", []), added],
    }


def _all_samples(engine: Engine, folder: Path) -> ir.Table:
    """Samples old and new, with ``split``."""
    tables = []
    for split in SPLITS:
        paths = sorted((folder / "samples" / split).glob("part-*.parquet"))
        tables.append(engine.read_parquet(paths, set()).drop(LOG_ROW).mutate(split=ibis.literal(split)))
    return ibis.union(*tables)


def _items_in_log(present: Present, schema: Schema, coded: Coded, samples: ir.Table) -> int:
    """Items of events and samples, old and new."""
    item = schema.item.name
    found = [rows.select(**{item: rows[item].cast("int64")}) for rows in (coded.rows, samples)]
    seen = ibis.union(*found, distinct=True).to_pyarrow()[item].to_numpy()
    before = present.occurring_items()
    known = seen[seen < len(before)]
    return int(before.sum()) + int((~before[known]).sum()) + len(seen) - len(known)


def _describe_samples(present: Present, schema: Schema, coded: Coded, samples: ir.Table) -> dict[str, Any]:
    flagged = samples.mutate(**{"$history": ibis.literal(False)})
    described = {split: describe_split(schema, flagged, split) for split in SPLITS}
    rows = coded.rows
    own = rows.filter(rows["$history"] & rows["split"].notnull())
    counts = own.group_by("split").agg(events=own.count())
    events = {row["split"]: int(row["events"]) for row in counts.to_pyarrow().to_pylist()}
    for split, figures in described.items():
        # That a sample of before has an event of its own is not written in the files.
        figures["with_own_event"] = present.report["samples"][split]["with_own_event"] + events.get(split, 0)
    return described
