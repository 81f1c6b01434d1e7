"""Spark as the engine: tables are Parquet in the work folder, which driver and workers must both reach.

Workers run the driver's Python environment, in the same place. Text files are converted by the reader of the other
engine, a file at a time, so that both parse alike.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.engine import BATCH_ROWS, Engine
from data_prep.memory import Budget
from data_prep.recipe_sources import Source
from data_prep.row_columns import LOG_ROW
from data_prep.text import text_table
from laser.schema import Schema
from laser.seqvault import SeqVault
from laser.seqvault.shards import Receipt, write_shard

INSTALL = "install the extra: pip install 'laser-ctr[spark]', and a Java runtime of version 17 or 21"
CONVERTER_BYTES = 1 << 30
"""Memory of one task that converts a text file."""
SHARDS_PER_CORE = 2
"""Tasks that write the history store, so that a slow one does not hold up the others for long."""
DONE = "_SUCCESS"
"""File by which Spark marks a table that is complete."""


class SparkEngine(Engine):
    """A Spark session.

    Args:
        work: folder of its tables.
        budget: memory of the driver and of each executor, threads of a session without a master.
        master: such as ``spark://host:7077``; ``None`` runs Spark inside this machine.

    Raises:
        ValueError: when PySpark or Java is missing, or the master does not answer.
    """

    def __init__(self, work: Path, budget: Budget, master: str | None) -> None:
        try:
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise ValueError(f"--engine spark needs PySpark ({error}); {INSTALL}") from None
        if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
            raise ValueError(f"--engine spark needs Java, and neither `java` nor JAVA_HOME is there; {INSTALL}")
        self.tables = work / "tables"
        self.streams = work / "streams"
        os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
        builder = SparkSession.builder.appName("laser-prep").master(master or f"local[{budget.threads or '*'}]")
        for key, value in _settings(work, budget).items():
            builder = builder.config(key, value)
        try:
            self.session = builder.getOrCreate()
        except Exception as error:
            first = str(error).strip().split("\n")[0].rstrip(".")
            raise ValueError(f"Spark did not start with master {master or 'local'}: {first}; {INSTALL}") from None
        self.con = ibis.pyspark.connect(self.session)
        self._stored: set[str] = set()
        self._texts = self._streams = self._views = 0

    def read_parquet(self, files: Sequence[Path], used: set[str]) -> ir.Table:
        """See ``Engine``."""
        wide = [field.name for field in pq.read_schema(files[0]) if field.name in used and field.type == pa.uint64()]
        if wide:
            cure = "write it as int64 or text, or use --engine duckdb"
            raise ValueError(f"column {wide[0]!r} of {files[0]} is uint64, which Spark has no type for; {cure}")
        return self._numbered(files, "log", LOG_ROW, 0)

    def read_text(self, source: Source, files: Sequence[Path], used: set[str], what: str) -> ir.Table:
        """See ``Engine``."""
        self._texts += 1
        folder = self.tables / f"text_{self._texts}"
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(os.fspath(path), os.fspath(folder / f"{place:06d}.parquet")) for place, path in enumerate(files)]

        def convert(job: tuple[str, str]) -> str:
            return _convert(source, Path(job[0]), Path(job[1]), used, what)

        complaints = self.session.sparkContext.parallelize(jobs, len(jobs)).map(convert).collect()
        if found := next((text for text in complaints if text), None):
            raise ValueError(found)
        return self.read_parquet([Path(target) for _, target in jobs], used)

    def store(self, name: str, rows: ir.Table) -> ir.Table:
        """See ``Engine``."""
        folder = self._keep(name, self._frame(rows))
        return self.con.read_parquet(os.fspath(folder), table_name=name)

    def store_ordered(self, name: str, rows: ir.Table, keys: Sequence[str], number: str, start: int) -> ir.Table:
        """See ``Engine``."""
        folder = self._keep(name, self._frame(rows).orderBy(*map(_quoted, keys)))
        return self._numbered(_parts(folder), name, number, start)

    def literal_table(self, name: str, rows: pa.Table) -> ir.Table:
        """See ``Engine``."""
        folder = self.tables / name
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, folder / "part-0.parquet")
        return self.con.read_parquet(os.fspath(folder), table_name=name)

    def stream(self, rows: ir.Table, keys: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """See ``Engine``. Workers sort and write; this process reads what they wrote, file by file."""
        self._streams += 1
        folder = self.streams / str(self._streams)
        frame = self._frame(rows)
        if keys:
            frame = frame.orderBy(*map(_quoted, keys))
        wanted = rows.schema().to_pyarrow()
        frame.write.mode("overwrite").parquet(os.fspath(folder))
        for path in _parts(folder):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH_ROWS):
                    yield batch.cast(wanted)
            path.unlink()

    def write_histories(self, path: Path, schema: Schema, rows: ir.Table, advance: Callable[[int], None]) -> None:
        """See ``Engine``. Each task writes a shard of users beside the store; the driver adopts all at once."""
        user, time = schema.user.name, schema.timestamp.name
        columns = [f.name for f in schema.event]
        folder = os.fspath(path)

        def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            from pyspark import TaskContext

            context = TaskContext.get()
            assert context is not None
            name = f"{context.partitionId()}-{context.attemptNumber()}"
            filled = (batch.select([user, *columns]) for batch in batches if batch.num_rows)
            if first := next(filled, None):
                receipt = write_shard(folder, chain([first], filled), user=user, name=name)
                yield pa.RecordBatch.from_pydict({"receipt": [json.dumps(receipt.to_dict())]})

        with SeqVault.create(path, schema) as vault:
            shards = SHARDS_PER_CORE * self.session.sparkContext.defaultParallelism
            ordered = (
                self._frame(rows)
                .repartitionByRange(shards, _quoted(user))
                .sortWithinPartitions(_quoted(user), _quoted(time), LOG_ROW)
            )
            told = ordered.mapInArrow(write, "receipt string").collect()
            receipts = [Receipt.from_dict(json.loads(row["receipt"])) for row in told]
            vault.adopt(receipts)
            advance(sum(receipt.events for receipt in receipts))

    def progress(self) -> float:
        """See ``Engine``: finished tasks of the stages that run."""
        status = self.session.sparkContext.statusTracker()
        stages = [found for number in status.getActiveStageIds() if (found := status.getStageInfo(number))]
        total = sum(stage.numTasks for stage in stages)
        return 100 * sum(stage.numCompletedTasks for stage in stages) / total if total else -1.0

    def close(self) -> None:
        """See ``Engine``."""
        self.session.stop()

    def _keep(self, name: str, frame: Any) -> Path:
        assert name not in self._stored, f"two tables are called {name}"
        self._stored.add(name)
        folder = self.tables / name
        if not (folder / DONE).exists():  # it is there when a killed run goes on
            frame.write.mode("overwrite").parquet(os.fspath(folder))
        return folder

    def _frame(self, rows: ir.Table) -> Any:
        return self.con.raw_sql(self.con.compile(rows))

    def _numbered(self, files: Sequence[Path], name: str, number: str, start: int) -> ir.Table:
        """Rows of Parquet files with their position over all files: rows before the file, and row within it."""
        from pyspark.sql import functions as f

        names = pq.read_schema(files[0]).names if files else []
        before, offsets = start, {}
        for path in files:
            offsets[os.path.abspath(path)] = before
            before += pq.read_metadata(path).num_rows
        lookup = self.session.createDataFrame(pa.table({"$file": list(offsets), "$before": list(offsets.values())}))
        # Spark names a file by its address: %20 for a blank, but + for itself.
        address = f.regexp_replace(f.col("_metadata.file_path"), r"\+", "%2B")
        path = f.regexp_replace(f.url_decode(address), "^file:/+", "/")
        frame = self.session.read.parquet(*(os.fspath(path) for path in files)).select(
            *(_quoted(name) for name in names), path.alias("$file"), f.col("_metadata.row_index").alias("$place")
        )
        joined = frame.join(f.broadcast(lookup), "$file", "left")
        position = f.assert_true(f.col("`$before`").isNotNull(), f.lit("a file that was not listed"))
        counted = f.coalesce(position.cast("long"), f.col("`$before`") + f.col("`$place`"))
        self._views += 1
        view = f"numbered_{name}_{self._views}"
        joined.select(*(_quoted(name) for name in names), counted.alias(number)).createOrReplaceTempView(view)
        return self.con.table(view)


def _settings(work: Path, budget: Budget) -> dict[str, str]:
    memory = f"{budget.engine >> 20}m"
    settings = {
        "spark.log.level": "ERROR",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
        "spark.sql.warehouse.dir": os.fspath(work / "warehouse"),
        "spark.local.dir": os.fspath(work / "spill"),
    }
    if budget.memory is not None:
        settings |= {"spark.driver.memory": memory, "spark.executor.memory": memory}
    return settings


def _convert(source: Source, path: Path, target: Path, used: set[str], what: str) -> str:
    """A text file as Parquet; returns a complaint, or nothing."""
    if target.exists():
        return ""
    con = ibis.duckdb.connect(memory_limit=f"{CONVERTER_BYTES}B", threads=1)
    try:
        unfinished = target.with_suffix(f".{uuid.uuid4().hex}")
        text_table(con, source, [path], used, what).to_parquet(unfinished)
        unfinished.rename(target)
    except Exception as error:
        return f"{path} cannot be read: {' '.join(str(error).split())}"
    finally:
        con.disconnect()
    return ""


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
