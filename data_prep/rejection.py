"""Rows that are unfit: kept with their reason, and too many of them stop the job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import pyarrow.parquet as pq

from data_prep.engine import Engine
from data_prep.file_places import place_in
from data_prep.intake import REASON
from data_prep.merging import LOG_NAME, LONGEST_LIST
from data_prep.recipe import Recipe
from data_prep.row_columns import CELL, LOG_FIRST, LOG_ROW


@dataclass(frozen=True)
class Judgement:
    """How many rows were read and why some were refused."""

    rows: int
    rejected: dict[str, int]
    """Reason -> rows, most frequent first."""

    @property
    def refused(self) -> int:
        """Rows rejected for any reason."""
        return sum(self.rejected.values())


def judge(log: ir.Table, recipe: Recipe, raw: Path) -> Judgement:
    """Count rejected rows.

    Raises:
        ValueError: when there are no rows, or more than the share ``max_rejected`` of the recipe is unfit.
    """
    counts = log.group_by(REASON).agg(rows=log.count()).to_pyarrow().to_pylist()
    total = sum(count["rows"] for count in counts)
    if total == 0:
        raise ValueError("the log has no rows; check `files` in the recipe")
    unfit = sorted((c for c in counts if c[REASON] is not None), key=lambda c: (-c["rows"], c[REASON]))
    found = Judgement(total, {c[REASON]: c["rows"] for c in unfit})
    if found.refused > recipe.max_rejected * total:
        reason = unfit[0][REASON]
        share = f"{found.refused} of {total} rows are unfit ({found.refused / total:.2%}), above max_rejected"
        cure = "correct the log or raise max_rejected in the recipe"
        first = _example(log, reason, recipe, raw)
        raise ValueError(f"{share} {recipe.max_rejected:g}; most often: {reason}, first at {first}; {cure}")
    return found


def _example(log: ir.Table, reason: str, recipe: Recipe, raw: Path) -> str:
    row: dict[str, Any] = log.filter(log[REASON] == reason).order_by(LOG_ROW).limit(1).to_pyarrow().to_pylist()[0]
    shown = {name.removeprefix("$"): row[name] for name in ("$user", "$item", "$timestamp", "$label")}
    if row[CELL] is not None:
        shown["cell"] = row[CELL]
    return f"{_place(row, recipe, raw)} ({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _place(row: dict[str, Any], recipe: Recipe, raw: Path) -> str:
    number = row[LOG_ROW] - row.get(LOG_FIRST, 0)
    source = next(log for log in recipe.log if log.name == row[LOG_NAME])
    whose = "" if source.name is None else f" of {source.name!r}"
    return f"log row {number}{whose}, {place_in(source, raw, number // (LONGEST_LIST if source.explode else 1))}"


def write_rejected(folder: Path, engine: Engine, log: ir.Table) -> None:
    """Write the next ``rejected/part-….parquet``, also when no row was rejected.

    Columns: the source's as they were parsed, ``log_row``, ``reason``, and ``cell``, the text that did not parse.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"part-{len(list(folder.glob('part-*.parquet'))):05d}.parquet"
    source = [name for name in log.columns if not name.startswith("$")]
    rows = log.filter(log[REASON].notnull()).select(*source, reason=log[REASON], cell=log[CELL])
    with pq.ParquetWriter(path, rows.schema().to_pyarrow(), compression="zstd") as writer:
        for batch in engine.batches(rows, [LOG_ROW]):
            writer.write_batch(batch)
