"""The engine that runs a preparation: DuckDB inside this process, or Spark; one definition for both.

Everything else in this package says in Ibis what is wanted. What engines do differently stands here and in
``data_prep.spark``: numbering rows, keeping intermediate tables, streaming rows in order, writing the history store.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa

from data_prep.histories import write_stream
from data_prep.memory import Budget
from data_prep.recipe_sources import Source
from data_prep.row_columns import LOG_ROW
from data_prep.text import text_table
from laser.schema import Schema

BATCH_ROWS = 1 << 19
EngineName = Literal["duckdb", "spark"]


class Engine(ABC):
    """Tables of one preparation. Their names must be unique and the same in each run of a recipe."""

    con: ibis.BaseBackend

    @abstractmethod
    def read_parquet(self, files: Sequence[Path], used: set[str]) -> ir.Table:
        """Columns of the files, the ``used`` ones at the least, and ``log_row``."""

    @abstractmethod
    def read_text(self, source: Source, files: Sequence[Path], used: set[str], what: str) -> ir.Table:
        """Typed columns of text files as ``data_prep.text`` reads them, and ``log_row``."""

    @abstractmethod
    def store(self, name: str, rows: ir.Table) -> ir.Table:
        """Evaluate once and keep; a job that goes on after a kill finds the table again."""

    @abstractmethod
    def store_ordered(self, name: str, rows: ir.Table, keys: Sequence[str], number: str, start: int) -> ir.Table:
        """``store`` with a column ``number`` that counts from ``start`` in the order of ``keys`` (no ties)."""

    @abstractmethod
    def literal_table(self, name: str, rows: pa.Table) -> ir.Table:
        """A small table of our own."""

    @abstractmethod
    def stream(self, rows: ir.Table, keys: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows in the order of ``keys``, in batches of the engine's own size."""

    @abstractmethod
    def write_histories(self, path: Path, schema: Schema, rows: ir.Table, advance: Callable[[int], None]) -> None:
        """Make a history store of rows with the user, the schema's event fields and ``log_row``."""

    @abstractmethod
    def progress(self) -> float:
        """Share (0 to 100) of what the engine does at the moment, negative when unknown."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the engine; its tables stay in the work folder. Closing twice is fine."""

    def batches(self, rows: ir.Table, keys: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        """Rows in the order of ``keys``, ``BATCH_ROWS`` at a time whatever the engine, the last batch shorter."""
        waiting: list[pa.RecordBatch] = []
        have = 0
        for batch in self.stream(rows, keys):
            waiting.append(batch)
            have += batch.num_rows
            while have >= BATCH_ROWS:
                table = pa.Table.from_batches(waiting)
                yield table.slice(0, BATCH_ROWS).combine_chunks().to_batches()[0]
                waiting, have = table.slice(BATCH_ROWS).to_batches(), have - BATCH_ROWS
        if have:
            yield pa.Table.from_batches(waiting).combine_chunks().to_batches()[0]


class DuckDBEngine(Engine):
    """DuckDB in this process, out of core beyond its share of the memory.

    Args:
        work: folder of its tables and of what does not fit in memory.
        budget: memory and threads of the job.
    """

    def __init__(self, work: Path, budget: Budget) -> None:
        spill = {"temp_directory": os.fspath(work / "spill")}
        self.con = ibis.duckdb.connect(_database(work), **spill, **budget.duckdb_options())
        self._stored: set[str] = set()
        self.con.raw_sql("SET enable_progress_bar_print = false")  # before the bar, or this line may show one
        self.con.raw_sql("SET enable_progress_bar = true")

    def read_parquet(self, files: Sequence[Path], used: set[str]) -> ir.Table:
        """See ``Engine``."""
        return _numbered(self.con.read_parquet([os.fspath(path) for path in files]))

    def read_text(self, source: Source, files: Sequence[Path], used: set[str], what: str) -> ir.Table:
        """See ``Engine``."""
        return _numbered(text_table(self.con, source, files, used, what))

    def store(self, name: str, rows: ir.Table) -> ir.Table:
        """See ``Engine``."""
        assert name not in self._stored, f"two tables are called {name}"
        self._stored.add(name)
        if name not in self.con.list_tables():  # it is there when a killed run goes on
            self.con.create_table(name, rows)
        return self.con.table(name)

    def store_ordered(self, name: str, rows: ir.Table, keys: Sequence[str], number: str, start: int) -> ir.Table:
        """See ``Engine``."""
        order = ibis.row_number().over(order_by=[rows[key] for key in keys]).cast("int64")
        return self.store(name, rows.mutate(**{number: order + start}))

    def literal_table(self, name: str, rows: pa.Table) -> ir.Table:
        """See ``Engine``."""
        return self.con.create_table(name, rows, overwrite=True)

    def stream(self, rows: ir.Table, keys: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See ``Engine``."""
        ordered = rows.order_by(*keys) if keys else rows
        yield from ordered.to_pyarrow_batches(chunk_size=BATCH_ROWS)

    def write_histories(self, path: Path, schema: Schema, rows: ir.Table, advance: Callable[[int], None]) -> None:
        """See ``Engine``."""
        keys = (schema.user.name, schema.timestamp.name, LOG_ROW)
        write_stream(path, schema, self.batches(rows, keys), advance)

    def progress(self) -> float:
        """See ``Engine``."""
        return self.con.con.query_progress()

    def close(self) -> None:
        """See ``Engine``."""
        self.con.disconnect()


def _database(work: Path) -> Path:
    """DuckDB's file. It gets its name when it is whole: a run killed while making it can be gone on with."""
    path, unfinished = work / "engine.duckdb", work / "engine.unfinished"
    if not path.exists():
        unfinished.unlink(missing_ok=True)
        duckdb.connect(unfinished).close()
        unfinished.rename(path)
    return path


def _numbered(rows: ir.Table) -> ir.Table:
    return rows.mutate(**{LOG_ROW: ibis.row_number().cast("int64")})


def open_engine(name: EngineName, work: Path, budget: Budget, spark_master: str | None) -> Engine:
    """Start an engine.

    Raises:
        ValueError: when Spark is asked for and cannot be started, or a master is given to DuckDB.
    """
    if name == "spark":
        from data_prep.spark import SparkEngine  # Spark is an extra, and starting it takes seconds

        return SparkEngine(work, budget, spark_master)
    if spark_master is not None:
        raise ValueError(f"--spark_master {spark_master} needs --engine spark; the engine is {name}")
    return DuckDBEngine(work, budget)
