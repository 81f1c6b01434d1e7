"""Coded rows -> the history store and the sample files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.codes import CODE, RAW, Codes
from data_prep.intake import Intake
from data_prep.recipe import SPLITS, Recipe
from data_prep.sources import LOG_ROW
from data_prep.splits import with_split
from laser.schema import Kind, Schema, names
from laser.seqvault import SeqVault

BATCH_ROWS = 1_000_000
PART_ROWS = 4_000_000
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Coded:
    """Accepted rows in codes: features under their schema names, ``log_row``, ``split`` and ``$history``."""

    rows: ir.Table
    events: int
    """Rows that become history events."""
    samples: dict[str, int]
    """Samples by split."""


def code_rows(con: ibis.BaseBackend, recipe: Recipe, schema: Schema, intake: Intake, codes: Codes) -> Coded:
    """Code the accepted rows and count what they will become.

    Raises:
        ValueError: when a split would be empty.
    """
    split = with_split(recipe, intake.accepted)
    in_log = list(recipe.event_side) + list(recipe.context)
    kept = {f"${schema.user.name}": split["$user"], f"${schema.item.name}": split["$item"]}
    kept |= {schema.timestamp.name: split["$timestamp"], schema.label.name: split["$label"]}
    kept |= {f"${name}": split[f"${name}"] for name in in_log}
    bare = split.select(**kept, **{LOG_ROW: split[LOG_ROW], "split": split["split"], "$history": split["$history"]})
    rows = con.create_table("coded", codes.encode(bare, [schema.user.name, schema.item.name, *in_log]))
    counts = rows.aggregate(
        events=rows["$history"].cast("int64").sum(),
        **{name: (rows["split"] == name).cast("int64").sum() for name in SPLITS},
    )
    found = {name: int(count or 0) for name, count in counts.to_pyarrow().to_pylist()[0].items()}
    events = found.pop("events")
    if empty := [name for name in SPLITS if found[name] == 0]:
        listed = ", ".join(f"{name} {count}" for name, count in found.items())
        raise ValueError(f"split {empty[0]!r} is empty (samples: {listed}); change `split` or `target` in the recipe")
    return Coded(rows, events, found)


def write_vault(path: Path, schema: Schema, coded: Coded, advance: Advance) -> None:
    """Stream history events, sorted by user and time, into a new store."""
    user, time = schema.user.name, schema.timestamp.name
    rows = coded.rows.filter(coded.rows["$history"])
    columns = [user, *names(schema.event)]
    ordered = rows.order_by(user, time, LOG_ROW).select(*columns)
    with SeqVault.create(path, schema) as vault:
        for batch in _batches(ordered):
            events = {f.name: _values(batch, f.name, f.dtype) for f in schema.event}
            vault.append(_values(batch, user, "int64"), events)
            advance(batch.num_rows)
        vault.compact()


def write_samples(folder: Path, schema: Schema, coded: Coded, advance: Advance) -> None:
    """Write each split's samples in the order of (timestamp, log row), ``row`` counting from 0."""
    kept = (schema.user, schema.item, schema.timestamp, schema.label, *schema.of_kind(Kind.CONTEXT))
    for split in SPLITS:
        target = folder / split
        target.mkdir(parents=True)
        rows = coded.rows.filter((coded.rows["split"] == split).coalesce(False))
        ordered = rows.order_by(schema.timestamp.name, LOG_ROW).select(*(f.name for f in kept))
        first = 0
        for part, table in enumerate(_parts(ordered)):
            columns = {"row": np.arange(first, first + len(table), dtype=np.int64)}
            columns |= {f.name: table[f.name].to_numpy().astype(f.dtype) for f in kept}
            pq.write_table(pa.table(columns), target / f"part-{part:05d}.parquet", compression="zstd")
            first += len(table)
            advance(len(table))
        assert first == coded.samples[split], (split, first, coded.samples)


def write_dictionaries(folder: Path, codes: Codes) -> None:
    """Write ``ids/<feature>.parquet`` with columns ``raw`` and ``code``."""
    folder.mkdir()
    for name, dictionary in codes.dictionaries.items():
        with pq.ParquetWriter(
            folder / f"{name}.parquet", dictionary.select(RAW, CODE).schema().to_pyarrow(), compression="zstd"
        ) as writer:
            for batch in dictionary.order_by(CODE).select(RAW, CODE).to_pyarrow_batches(chunk_size=BATCH_ROWS):
                writer.write_batch(batch)


def _batches(rows: ir.Table) -> Iterator[pa.RecordBatch]:
    yield from rows.to_pyarrow_batches(chunk_size=BATCH_ROWS)


def _parts(rows: ir.Table) -> Iterator[pa.Table]:
    """Tables of ``PART_ROWS`` rows, the last one shorter."""
    waiting: list[pa.RecordBatch] = []
    for batch in _batches(rows):
        waiting.append(batch)
        while (have := sum(b.num_rows for b in waiting)) >= PART_ROWS:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, PART_ROWS)
            waiting = table.slice(PART_ROWS).to_batches() if have > PART_ROWS else []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _values(batch: pa.RecordBatch, name: str, dtype: str) -> np.ndarray:
    return batch.column(name).to_numpy(zero_copy_only=False).astype(dtype, copy=False)
