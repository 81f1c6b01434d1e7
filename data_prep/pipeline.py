"""The whole job: raw files in, a prepared data set out, or one clear sentence and nothing changed."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from data_prep.codes import Codes, make_codes
from data_prep.engine import Engine, EngineName, open_engine
from data_prep.expected import compare, recognise
from data_prep.id_coverage import id_coverage
from data_prep.intake import Intake, accept, read_items, read_log
from data_prep.items import write_items
from data_prep.layout import make_schema
from data_prep.leakage import PASSES, check_prepared
from data_prep.leakage_findings import Findings
from data_prep.leakage_windows import refuse_future
from data_prep.memory import Budget
from data_prep.progress import Stages
from data_prep.recipe import Recipe
from data_prep.recipe_file import load_recipe
from data_prep.rejection import Judgement, judge, write_rejected
from data_prep.report_page import write_page
from data_prep.resuming import Parts, belongs, fingerprint
from data_prep.row_counts import count_rows
from data_prep.sources import resolve_raw
from data_prep.staging import staged
from data_prep.stray_times import stray_sentence, stray_times
from data_prep.summary import complete, describe, write_report
from data_prep.writing import Coded, code_rows, write_dictionaries, write_samples, write_vault
from laser.schema import Schema

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_WORDS = ("no space left", "disk quota", "file too large", "could not write", "failed to write")


def prepare(
    recipe: Path,
    out: Path,
    raw: Path | None = None,
    memory: str | None = None,
    threads: int | None = None,
    engine: EngineName = "duckdb",
    spark_master: str | None = None,
) -> dict[str, Any]:
    """Prepare a data set.

    The folder ``out`` appears, or is replaced, in one step at the end; whatever goes wrong before leaves it as it was.
    A killed run is taken up by the next one of the same recipe, files and engine: it keeps finished tables and parts.

    Args:
        recipe: YAML file, see ``data_prep.recipe``.
        out: folder of the prepared data set.
        raw: folder of the raw files, in place of the recipe's.
        memory: limit of the whole job such as ``4GB``; it works out of core beyond. Default: 80 % of the machine's.
            On Spark: of the driver, and of each executor.
        threads: of the engine. Default: all cores.
        engine: what runs the queries; the data set is the same.
        spark_master: address of a Spark cluster such as ``spark://host:7077``. Default: Spark in this machine.

    Returns:
        The content of ``report.json``.

    Raises:
        ValueError: on anything that the user can mend, in one sentence.
    """
    budget = Budget(memory, threads)
    mapping = load_recipe(recipe)
    refuse_future(mapping)
    folder = resolve_raw(mapping.raw, raw, recipe.parent)
    edition = recognise(mapping.expected, folder)
    mark = fingerprint(mapping, folder, engine)
    with plain_errors(out), staged(out, lambda left: belongs(left, mark)) as staging:
        parts = Parts(staging, mark, budget)
        if parts.resumed:
            print("goes on where a killed run of the same recipe and files stopped", file=sys.stderr)
        running = open_engine(engine, parts.work, budget, spark_master)
        try:
            report, found = _prepare(running, mapping, folder, staging, parts)
            if mapping.expected:
                report["expected"] = compare(mapping.expected, edition, report)
        finally:
            running.close()
            shutil.rmtree(parts.work, ignore_errors=True)
        report = complete(report, found, staging)
        write_report(staging / "report.json", report)
        write_page(staging, report, budget.duckdb_options())
    return report


def _prepare(engine: Engine, recipe: Recipe, raw: Path, staging: Path, parts: Parts) -> tuple[dict[str, Any], Findings]:
    with Stages(engine.progress) as stages:
        with stages.query("reading the log"):
            log = read_log(engine, recipe, raw)
            judgement = judge(log, recipe, raw)
        with stages.query("reading item side info"):
            items = read_items(engine, recipe, raw)
        with stages.query("coding ids"):
            accepted, removed = accept(engine, recipe, log)
            intake = Intake(log, accepted, items, removed)
            codes = make_codes(engine, recipe, intake)
            schema = make_schema(recipe, codes)
            coded = code_rows(engine, recipe, schema, intake, codes)
        return _write(engine, recipe, intake, codes, schema, coded, judgement, parts, staging, stages)


def _write(
    engine: Engine,
    recipe: Recipe,
    intake: Intake,
    codes: Codes,
    schema: Schema,
    coded: Coded,
    judgement: Judgement,
    parts: Parts,
    staging: Path,
    stages: Stages,
) -> tuple[dict[str, Any], Findings]:
    schema.save(staging / "schema.json")
    known = write_items(staging / "items.parquet", engine, recipe, schema, intake, codes)
    write_dictionaries(staging / "ids", engine, codes)
    write_rejected(staging / "rejected", engine, intake.log)
    samples = sum(coded.samples.values())
    with stages.counted("writing histories", coded.events) as advance:
        vault = staging / "vault"
        parts.once(vault, lambda: write_vault(vault, engine, schema, coded, advance))
    with stages.counted("writing samples", samples) as advance:
        folder = staging / "samples"
        parts.once(folder, lambda: write_samples(folder, engine, schema, coded, advance))
    with stages.query("describing"):
        ids = id_coverage(engine, recipe, intake, codes, coded.rows)
        rows = count_rows(recipe, judgement, intake, coded)
        report = describe(recipe, schema, rows, coded, known, ids)
        if strays := stray_times(intake.accepted, schema.timestamp_unit):
            report["stray_times"] = strays
            print(f"laser-prep: {stray_sentence(strays, schema)}", file=sys.stderr)
    with stages.counted("checking for leakage", PASSES * samples) as advance:
        engine.close()  # the check has memory of its own, and both would exceed the limit
        found = check_prepared(staging, report, advance, parts.budget.gathering)
    if found.problems:
        raise ValueError(f"the leakage check failed: {'; '.join(found.problems)}; correct the recipe or the log")
    return report, found


@contextmanager
def plain_errors(out: Path) -> Iterator[None]:
    """Turn the engine's and the disk's complaints into one sentence.

    Raises:
        ValueError: in their place.
        KeyboardInterrupt: when the user interrupted the engine.
    """
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        first = " ".join(str(error).split("\n")[0].split()).rstrip(".")
        full = isinstance(error, OSError) and error.errno in FULL
        if full or any(words in first.lower() for words in FULL_WORDS):
            cure = "nothing was changed, so free space and run again"
            raise ValueError(f"the disk of {out} is full or over its quota ({first}); {cure}") from error
        if isinstance(error, duckdb.Error):
            cure = "check the files, columns and expressions named there"
            raise ValueError(f"the engine refused the data or the recipe: {first}; {cure}") from error
        if isinstance(error, pa.ArrowException):
            raise ValueError(f"a file could not be read or written: {first}") from error
        raise
    except RuntimeError as error:
        # DuckDB wraps Ctrl-C while a query runs.
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        _refuse_from_spark(error)
        raise
    except Exception as error:
        _refuse_from_spark(error)
        raise


def _refuse_from_spark(error: Exception) -> None:
    """Raise Spark's own errors as one sentence; they are told by their module, as Spark may not be installed."""
    if type(error).__module__.partition(".")[0] in ("pyspark", "py4j"):
        first = " ".join(str(error).strip().split("\n")[0].split()).rstrip(".")
        cure = "check the cluster, the files, columns and expressions named there"
        raise ValueError(f"Spark refused the data or the recipe: {first}; {cure}") from error
