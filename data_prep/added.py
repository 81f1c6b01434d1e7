"""The report of a data set that was extended: figures of the whole, and what each addition brought."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from data_prep.engine import Engine
from data_prep.items import known_shares
from data_prep.present import Present
from data_prep.recipe import SPLITS
from data_prep.row_counts import sum_rows
from data_prep.summary import describe_split
from data_prep.writing import Coded
from laser.schema import Schema

NEW = "$new"


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

    Which values a hash stands for is not kept: once extended, ``items`` of a hashed item counts codes in use in the
    log, and ``ids`` stays as the first run found it.

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
    users, number = (schema.user.cardinality or 1) - 1, (schema.item.cardinality or 1) - 1
    samples = _all_samples(engine, staging, schema, present)
    in_log = _items_in_log(present, schema, coded.rows, samples)
    known = known_shares(items, schema)
    new_items = number - old["items"]
    if "hash" in old.get("ids", {}).get(schema.item.name, {}):
        new_items = in_log - _items_in_log(present, schema, samples.filter(~samples[NEW]))
        known = {name: share * number / in_log for name, share in known.items()}
        number = in_log
    added = {
        "files": files,
        "rows": rows,
        "users": users - old["users"],
        "items": new_items,
        "events": coded.events,
        "samples": coded.samples,
        "after": present.end,
    }
    return old | {
        "schema": schema.fingerprint(),
        "rows": sum_rows(old["rows"], rows),
        "users": users,
        "items": number,
        "items_in_log": in_log,
        "events": old["events"] + coded.events,
        "side_info_known": known,
        "samples": _describe_samples(present, schema, coded, samples),
        "additions": [*old.get("additions", []), added],
    }


def _all_samples(engine: Engine, folder: Path, schema: Schema, present: Present) -> ir.Table:
    """Samples old and new, with ``split`` and ``NEW``."""
    tables = []
    for split in SPLITS:
        paths = [os.fspath(path) for path in sorted((folder / "samples" / split).glob("part-*.parquet"))]
        # Types of codes may have grown since the first file, and not in every split.
        rows = engine.con.read_parquet(paths, union_by_name=True)
        rows = rows.cast({feature.name: feature.dtype for feature in schema.features if feature.name in rows.columns})
        rows = rows.mutate(split=ibis.literal(split))
        tables.append(rows.mutate(**{NEW: rows["row"] >= present.report["samples"][split]["samples"]}))
    return ibis.union(*tables)


def _items_in_log(present: Present, schema: Schema, *tables: ir.Table) -> int:
    """Item codes in the data set's old events or in the tables."""
    item = schema.item.name
    found = [rows.select(**{item: rows[item].cast("int64")}) for rows in tables]
    seen = (ibis.union(*found, distinct=True) if len(found) > 1 else found[0].distinct()).to_pyarrow()[item].to_numpy()
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
