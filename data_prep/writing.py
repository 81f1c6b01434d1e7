"""Coded rows -> the history store and the sample files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.codes import Codes
from data_prep.engine import Engine
from data_prep.intake import Intake
from data_prep.recipe import SPLITS, Recipe
from data_prep.row_columns import LOG_ROW
from data_prep.splits import with_split
from data_prep.vocabulary import CODE, RAW
from laser.schema import Kind, Schema, names

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
    sample_columns: list[str]
    """Columns that samples have besides features, as the log has them."""


def code_rows(
    engine: Engine, recipe: Recipe, schema: Schema, intake: Intake, codes: Codes, *, addition: bool = False
) -> Coded:
    """Code the accepted rows and count what they will become.

    Raises:
        ValueError: when a split would be empty, unless the rows are an ``addition`` to splits that are not.
    """
    split = with_split(recipe, intake.accepted)
    in_log = list(recipe.event_side) + list(recipe.context)
    kept = {f"${schema.user.name}": split["$user"], f"${schema.item.name}": split["$item"]}
    kept |= {schema.timestamp.name: split["$timestamp"], schema.label.name: split["$label"]}
    kept |= {f"${name}": split[f"${name}"] for name in in_log}
    kept |= {name: split[f"${name}"] for name in recipe.sample_columns}
    bare = split.select(**kept, **{LOG_ROW: split[LOG_ROW], "split": split["split"], "$history": split["$history"]})
    rows = engine.store("coded", codes.encode(bare, [schema.user.name, schema.item.name, *in_log]))
    counts = rows.aggregate(
        events=rows["$history"].cast("int64").sum(),
        **{name: (rows["split"] == name).cast("int64").sum() for name in SPLITS},
    )
    found = {name: int(count or 0) for name, count in counts.to_pyarrow().to_pylist()[0].items()}
    events = found.pop("events")
    if (empty := [name for name in SPLITS if found[name] == 0]) and not addition:
        listed = ", ".join(f"{name} {count}" for name, count in found.items())
        raise ValueError(f"split {empty[0]!r} is empty (samples: {listed}); change `split` or `target` in the recipe")
    return Coded(rows, events, found, recipe.sample_columns)


def write_vault(path: Path, engine: Engine, schema: Schema, coded: Coded, advance: Advance) -> None:
    """Make the store of history events, each user's by time and log row."""
    rows = coded.rows.filter(coded.rows["$history"])
    columns = [schema.user.name, *names(schema.event), LOG_ROW]
    engine.write_histories(path, schema, rows.select(*columns), advance)


def write_samples(folder: Path, engine: Engine, schema: Schema, coded: Coded, advance: Advance) -> None:
    """Write each split's samples in the order of (timestamp, log row), ``row`` counting from 0.

    Parts that are there already stay, and ``row`` goes on after theirs.
    """
    kept = (schema.user, schema.item, schema.timestamp, schema.label, *schema.of_kind(Kind.CONTEXT))
    for split in SPLITS:
        target = folder / split
        target.mkdir(parents=True, exist_ok=True)
        present = sorted(target.glob("part-*.parquet"))
        first = start = sum(pq.read_metadata(path).num_rows for path in present)
        rows = coded.rows.filter((coded.rows["split"] == split).coalesce(False))
        needed = rows.select(*(f.name for f in kept), *coded.sample_columns, LOG_ROW)
        parts = _parts(engine.batches(needed, [schema.timestamp.name, LOG_ROW]))
        for part, table in enumerate(parts, len(present)):
            columns = {"row": np.arange(first, first + len(table), dtype=np.int64)}
            columns |= {f.name: table[f.name].to_numpy().astype(f.dtype) for f in kept}
            columns |= {name: table[name] for name in coded.sample_columns}
            pq.write_table(pa.table(columns), target / f"part-{part:05d}.parquet", compression="zstd")
            first += len(table)
            advance(len(table))
        assert first - start == coded.samples[split], (split, first - start, coded.samples)


def write_dictionaries(folder: Path, engine: Engine, codes: Codes) -> None:
    """Write ``ids/<feature>.parquet`` with columns ``raw`` and ``code``, but for hashed features."""
    folder.mkdir()
    for name, dictionary in codes.dictionaries.items():
        with pq.ParquetWriter(
            folder / f"{name}.parquet", dictionary.select(RAW, CODE).schema().to_pyarrow(), compression="zstd"
        ) as writer:
            for batch in engine.batches(dictionary.select(RAW, CODE), [CODE]):
                writer.write_batch(batch)


def _parts(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of ``PART_ROWS`` rows, the last one shorter."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        while (have := sum(b.num_rows for b in waiting)) >= PART_ROWS:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, PART_ROWS)
            waiting = table.slice(PART_ROWS).to_batches() if have > PART_ROWS else []
    if waiting:
        yield pa.Table.from_batches(waiting)
