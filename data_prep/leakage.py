"""The leakage check: reads a finished data set, as training will, and looks for knowledge of the future.

It trusts nothing that wrote the data set: the store is read through its public interface, samples from their files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.leakage_outcome import outcome_in_disguise
from data_prep.recipe import SPLITS
from laser.schema import Schema
from laser.seqvault import SeqVault
from laser.seqvault.ragged import Ragged

BATCH_ROWS = 100_000
USERS_AT_ONCE = 256
"""Whole histories held in memory at a time."""
CUT_SAMPLES = 50_000
"""Samples, evenly spread, whose history is read exactly as training reads it."""


@dataclass
class Findings:
    """Outcome of the check."""

    problems: list[str] = field(default_factory=list)
    """One sentence each; empty when all is well."""
    samples: int = 0
    """Samples compared with the whole history of their user."""
    cuts: int = 0
    """Samples whose history was read with the store's own cut in time."""
    own_events: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    """Split -> samples whose own event the store holds, at the sample's own time."""
    lengths: dict[str, np.ndarray] = field(default_factory=lambda: {split: np.zeros(1, np.int64) for split in SPLITS})
    """Split -> number of samples by history length."""

    def add(self, condition: bool | np.bool_, problem: str) -> None:
        """Note a problem once, where ``condition`` holds."""
        if condition and problem not in self.problems:
            self.problems.append(problem)


def check_prepared(
    folder: Path,
    report: dict[str, Any],
    advance: Callable[[int], None] = lambda rows: None,
    options: Mapping[str, Any] | None = None,
) -> Findings:
    """Check a finished data set against its own report.

    Args:
        folder: with schema.json, items.parquet, vault/ and samples/.
        report: content of ``report.json``; its ``split``, ``ids``, ``events`` and, per split, ``samples`` and
            ``with_own_event`` are used.
        advance: told the number of finished samples.
        options: of the DuckDB connection that reads the samples, such as its ``memory_limit``.
    """
    schema = Schema.load(folder / "schema.json")
    con = ibis.duckdb.connect(**(options or {}))
    samples = _samples(con, folder)
    found = Findings()
    _check_counts(samples, schema, report, found)
    _check_items(folder, schema, found)
    # Reports of before ids could share codes do not say so.
    own = report.get("ids", {}).get(schema.item.name, {}).get("own", (schema.item.cardinality or 1) - 1)
    _check_splits(samples, schema, report["split"], own, found)
    _check_histories(folder, samples, schema, report["events"], found, advance)
    found.problems += outcome_in_disguise(folder, schema)
    for split in SPLITS:
        lacking = report["samples"][split]["with_own_event"] - found.own_events[split]
        moved = f"{lacking} {split} samples lack their own event at their own time: it was moved in time or lost"
        found.add(lacking > 0, moved)
    return found


def _samples(con: ibis.BaseBackend, folder: Path) -> ir.Table:
    """Samples of all splits with ``split``, and ``place``, the position within the split's files."""
    tables = []
    for split in SPLITS:
        paths = [os.fspath(path) for path in sorted((folder / "samples" / split).glob("*.parquet"))]
        if not paths:
            raise ValueError(
                f"{folder / 'samples' / split} holds no Parquet file; prepare the data set again with laser-prep"
            )
        table = con.read_parquet(paths)
        tables.append(table.mutate(split=ibis.literal(split), place=ibis.row_number().cast("int64")))
    return con.create_table("samples", ibis.union(*tables), temp=True)


def _count(rows: ir.Table) -> int:
    return int(rows.count().to_pyarrow().as_py())


def _check_counts(samples: ir.Table, schema: Schema, report: dict[str, Any], found: Findings) -> None:
    """Number, order and codes of the samples."""
    for split in SPLITS:
        rows = samples.filter(samples["split"] == split)
        have, wanted = _count(rows), report["samples"][split]["samples"]
        found.add(have != wanted, f"split {split!r} has {have} samples, its report says {wanted}")
        found.add(
            _count(rows.filter(rows["row"] != rows["place"])) > 0,
            f"`row` of split {split!r} does not count its samples from 0",
        )
        time = rows[schema.timestamp.name]
        previous = time.lag().over(order_by=rows["place"])
        late = rows.mutate(late=(previous > time).coalesce(False))
        found.add(_count(late.filter(late["late"])) > 0, f"samples of split {split!r} are not in the order of time")
    for feature in (schema.user, schema.item):
        code = samples[feature.name]
        lowest = 0 if report.get("ids", {}).get(feature.name, {}).get("unknown") else 1
        strays = _count(samples.filter((code < lowest) | (code >= feature.cardinality)))
        outside = f"code outside {lowest} ... {feature.cardinality} - 1"
        found.add(strays > 0, f"{strays} samples have a {feature.name} {outside}")
    strays = _count(samples.filter(~samples[schema.label.name].isin([0, 1])))
    found.add(strays > 0, f"{strays} samples have a label other than 0 and 1")


def _check_items(folder: Path, schema: Schema, found: Findings) -> None:
    rows = pq.read_metadata(folder / "items.parquet").num_rows
    found.add(
        rows != schema.item.cardinality, f"items.parquet has {rows} rows for {schema.item.cardinality} item codes"
    )


def _check_splits(samples: ir.Table, schema: Schema, split: dict[str, Any], own: int, found: Findings) -> None:
    """Train before validation before test, in the way that the recipe split; item codes above ``own`` are shared."""
    user, item, time = schema.user.name, schema.item.name, schema.timestamp.name
    if split["way"] in ("by_value", "by_user_fold"):
        users = samples.group_by(user).agg(splits=samples["split"].nunique())
        mixed = _count(users.filter(users["splits"] > 1)) if split["users_disjoint"] else 0
        found.add(mixed > 0, f"{mixed} users have samples in more than one split")
    else:
        groups = samples.group_by(user) if split["way"] == "per_user" else samples
        bounds = {}
        for name in SPLITS:
            inside = samples["split"] == name
            bounds |= {
                f"first_{name}": samples[time].min(where=inside),
                f"last_{name}": samples[time].max(where=inside),
            }
        spans = groups.agg(**bounds) if split["way"] == "per_user" else samples.aggregate(**bounds)
        for earlier, later in (("train", "val"), ("val", "test"), ("train", "test")):
            crossed = _count(spans.filter(spans[f"last_{earlier}"] > spans[f"first_{later}"]))
            whose = f"for {crossed} users" if split["way"] == "per_user" else "in time"
            found.add(crossed > 0, f"{earlier} samples lie after {later} samples {whose}")
    single = samples.filter((samples[item] > 0) & (samples[item] <= own))  # other codes stand for several items
    keys = single.group_by(user, item, time).agg(splits=samples["split"].nunique())
    repeated = _count(keys.filter(keys["splits"] > 1))
    cure = "let `target.where` keep one, such as row_number() OVER (PARTITION BY user, item, time ORDER BY log_row) = 1"
    found.add(repeated > 0, f"{repeated} samples (same user, item and time) stand in two splits: {cure}")


def _check_histories(
    folder: Path, samples: ir.Table, schema: Schema, events: int, found: Findings, advance: Callable[[int], None]
) -> None:
    columns = [schema.user.name, schema.item.name, schema.timestamp.name, "split"]
    ordered = samples.order_by(columns[0], columns[2], "split", "place").select(*columns)
    stride = max(1, _count(samples) // CUT_SAMPLES)
    with SeqVault.open(folder / "vault") as vault:
        have = int(vault.stats()["events"])
        found.add(have != events, f"histories hold {have} events, the report says {events}: some were added or lost")
        for batch in ordered.to_pyarrow_batches(chunk_size=BATCH_ROWS):
            user = _numbers(batch, columns[0])
            split = np.asarray(batch.column("split").to_pylist())
            edges = np.flatnonzero(np.diff(user)) + 1
            starts = np.concatenate([[0], edges[USERS_AT_ONCE - 1 :: USERS_AT_ONCE], [len(user)]])
            for start, stop in pairwise(starts):
                piece = slice(int(start), int(stop))
                rows = _Rows(
                    user[piece], _numbers(batch, columns[1])[piece], _numbers(batch, columns[2])[piece], split[piece]
                )
                _check_piece(vault, schema, rows, stride, found)
                advance(int(stop - start))


@dataclass(frozen=True)
class _Rows:
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    split: np.ndarray


def _check_piece(vault: SeqVault, schema: Schema, rows: _Rows, stride: int, found: Findings) -> None:
    """Samples of a few users against those users' whole histories."""
    time_name, item_name = schema.timestamp.name, schema.item.name
    users, of_sample = np.unique(rows.user, return_inverse=True)
    history = vault.read(users.astype(np.int64), fields=[time_name, item_name])
    times, items = history[time_name].astype(np.int64), history[item_name].astype(np.int64)
    of_event = np.repeat(np.arange(len(users)), history.lengths)
    found.add((np.diff(times)[np.diff(of_event) == 0] < 0).any(), "histories are not in the order of time")

    ranks, both = np.unique(np.concatenate([times, rows.time]), return_inverse=True)
    event_key = of_event * len(ranks) + both[: len(times)]
    sample_key = of_sample * len(ranks) + both[len(times) :]
    earlier = np.searchsorted(event_key, sample_key, side="left") - history.offsets[of_sample]
    catalogue = int(schema.item.cardinality or 1)
    own = np.isin(sample_key * catalogue + rows.item, event_key * catalogue + items)
    for split in SPLITS:
        inside = rows.split == split
        found.own_events[split] += int(own[inside].sum())
        found.lengths[split] = _add_counts(found.lengths[split], np.bincount(earlier[inside], minlength=1))

    chosen = np.flatnonzero((found.samples + np.arange(len(rows.user))) % stride == 0)
    found.samples += len(rows.user)
    found.cuts += len(chosen)
    cut = vault.read(rows.user[chosen].astype(np.int64), before=rows.time[chosen], fields=[time_name])
    _check_cut(cut, time_name, rows.time[chosen], earlier[chosen], found)


def _check_cut(cut: Ragged, time_name: str, sample_time: np.ndarray, earlier: np.ndarray, found: Findings) -> None:
    future = int((cut[time_name] >= np.repeat(sample_time, cut.lengths)).sum())
    found.add(future > 0, f"histories hold {future} events at or after their sample's time")
    found.add((cut.lengths < earlier).any(), "histories lack events that lie before their sample's time")


def _add_counts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    total = np.zeros(max(len(first), len(second)), np.int64)
    total[: len(first)] += first
    total[: len(second)] += second
    return total


def _numbers(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch.column(name).to_numpy(zero_copy_only=False).astype(np.int64)
