"""New log files into a data set that exists: one more day, say, without touching what is there.

The extended data set is built beside the old one, of which it shares all files that stay, and takes its place in one
step; whatever goes wrong before leaves the old one as it was.

Rows are numbered anew in each addition, so that `downsample`, which draws by row, keeps other samples than one run over
all files would. Files are known again by the checksums of the log; a side table alone changes nothing.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data_prep.added import describe_addition
from data_prep.engine import Engine, open_engine
from data_prep.extending import extend_codes, extend_items, extend_schema, extend_vault
from data_prep.file_checks import find_files
from data_prep.intake import REASON, Intake, accept, read_items, read_log
from data_prep.leakage import PASSES, check_prepared
from data_prep.leakage_findings import Findings
from data_prep.leakage_windows import refuse_future
from data_prep.memory import Budget
from data_prep.pipeline import plain_errors
from data_prep.present import Present, require_extendable
from data_prep.progress import Stages
from data_prep.recipe import Recipe
from data_prep.recipe_file import load_recipe
from data_prep.rejection import Judgement, judge, write_rejected
from data_prep.report_page import write_page
from data_prep.row_counts import count_rows
from data_prep.sources import resolve_raw
from data_prep.staging import staged
from data_prep.summary import complete, write_report
from data_prep.writing import code_rows, write_dictionaries, write_samples
from laser.seqvault.lock import WriterLock

Late = Literal["refuse", "reject"]
LATE = "timestamp is not after the data set's end"
MOST_BYTES = 1 << 30
"""Memory for new events while they are sorted."""


@dataclass(frozen=True)
class Period:
    """Which of the new rows become samples, in a data set split by time."""

    first: int | None = None
    """Timestamp of the first test sample among them; rows before it are history only."""
    end: int | None = None
    """First timestamp that is no longer test, in place of the recipe's."""

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with this period.

        Raises:
            ValueError: when it does not split by time.
        """
        if self.first is None and self.end is None:
            return recipe
        if recipe.split.by_time is None:
            raise ValueError(
                "--test_from and --test_end belong to data sets split `by_time`; this one is split "
                f"`{recipe.split.way}`"
            )
        if self.first is not None and self.end is not None and self.first >= self.end:
            raise ValueError(f"--test_from {self.first} is not before --test_end {self.end}")
        by_time = recipe.split.by_time if self.end is None else replace(recipe.split.by_time, end=self.end)
        return replace(recipe, split=replace(recipe.split, by_time=by_time))


def extend(
    recipe: Path,
    to: Path,
    raw: Path,
    late: Late = "refuse",
    period: Period = Period(),
    memory: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Add new log files to a prepared data set.

    Args:
        recipe: that the data set was prepared with; names of files and ``max_rejected`` may differ.
        to: folder of the data set.
        raw: folder with the new files of the log, and with side tables that know the new items.
        late: what to do with rows that are not newer than the newest row of the data set: ``refuse`` the files, or
            ``reject`` the rows, with their reason.
        period: of new samples.
        memory: as in ``prepare``.
        threads: as in ``prepare``.

    Returns:
        What ``report.json`` says of the addition; with ``already: True`` when these files had been added before.

    Raises:
        ValueError: on anything that the user can mend, in one sentence.
    """
    budget, mapping = Budget(memory, threads), load_recipe(recipe)
    refuse_future(mapping)
    folder = resolve_raw(None, raw, recipe.parent)
    before = Present.open(to)
    require_extendable(mapping, before)
    mapping = period.applied(mapping)
    files = _checksums(mapping, folder)
    if known := before.addition_of(files):
        return known | {"already": True}
    with plain_errors(to), _no_other_writer(to), staged(to) as staging:
        present = Present.open(to)
        if present.report != before.report:
            raise ValueError(f"{to} was changed by another process at this moment; run again")
        present.link_into(staging)
        work = staging / "work"
        work.mkdir()
        engine = open_engine("duckdb", work, budget, None)
        try:
            job = Addition(engine, mapping, folder, present, staging, period)
            report, found = job.run(late, files, budget)
        finally:
            engine.close()
            shutil.rmtree(work, ignore_errors=True)
        report = complete(report, found, staging)
        write_report(staging / "report.json", report)
        write_page(staging, report, budget.duckdb_options())
    return report["additions"][-1]


def _checksums(recipe: Recipe, raw: Path) -> dict[str, str]:
    """SHA-256 of each file of the log, by its path below the raw folder."""
    found = {}
    for log in recipe.log:
        for path in find_files(log, raw):
            with path.open("rb") as file:
                found[str(path.relative_to(raw))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


@contextmanager
def _no_other_writer(to: Path) -> Iterator[None]:
    """Refuse to work beside a process that appends to the histories: what it adds would be lost at the switch."""
    lock = WriterLock(to / "vault")
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Addition:
    """One addition on its way.

    Args:
        engine: that evaluates the recipe.
        recipe: of the data set.
        raw: folder of the new files.
        present: the data set as it is.
        staging: folder of the data set to be, which has the files that stay.
        period: of new samples.
    """

    engine: Engine
    recipe: Recipe
    raw: Path
    present: Present
    staging: Path
    period: Period

    def run(self, late: Late, files: dict[str, str], budget: Budget) -> tuple[dict[str, Any], Findings]:
        """Write everything but the report; returns it and what the leakage check found."""
        engine, recipe, staging = self.engine, self.recipe, self.staging
        with Stages(engine.progress) as stages:
            with stages.query("reading the new log"):
                intake, judgement = self._read(late)
            with stages.query("coding ids"):
                codes = extend_codes(engine, recipe, intake, self.present)
                schema = extend_schema(self.present.schema, codes)
                coded = code_rows(engine, recipe, schema, intake, codes, addition=True)
            if not coded.events and not any(coded.samples.values()):
                raise ValueError(
                    f"none of the {judgement.rows} new rows becomes an event or a sample; nothing was added, so check "
                    "--raw and the recipe's conditions"
                )
            schema.save(staging / "schema.json")
            items = extend_items(staging / "items.parquet", engine, recipe, schema, intake, codes, self.present)
            write_dictionaries(staging / "ids", engine, codes)
            write_rejected(staging / "rejected", engine, intake.log)
            with stages.counted("adding to histories", 2 * coded.events) as advance:
                sorting = min(MOST_BYTES, budget.total // 4)
                extend_vault(staging / "vault", engine, schema, coded, sorting, advance)
            with stages.counted("writing samples", sum(coded.samples.values())) as advance:
                write_samples(staging / "samples", engine, schema, coded, advance)
            rows = count_rows(recipe, judgement, intake, coded)
            report = describe_addition(engine, self.present, staging, schema, items, rows, coded, files)
            total = sum(split["samples"] for split in report["samples"].values())
            with stages.counted("checking for leakage", PASSES * total) as advance:
                engine.close()  # the check has memory of its own, and both would exceed the limit
                found = check_prepared(staging, report, advance, budget.gathering)
        if found.problems:
            problems = "; ".join(found.problems)
            raise ValueError(
                f"the leakage check failed, and nothing was added: {problems}; correct the recipe or the log"
            )
        return report, found

    def _read(self, late: Late) -> tuple[Intake, Judgement]:
        engine, recipe = self.engine, self.recipe
        log = read_log(engine, recipe, self.raw)
        judgement = judge(log, recipe, self.raw)
        stale = (log[REASON].isnull() & (log["$timestamp"] <= self.present.end)).coalesce(False)
        count = int(log.filter(stale).count().to_pyarrow().as_py())
        if count and late == "refuse":
            raise ValueError(
                f"{count} of {judgement.rows} new rows are not after {self.present.end}, the newest timestamp of "
                f"{self.present.folder}; take them out, or give --late reject to leave them in rejected/"
            )
        if count:
            log = engine.store("new_log", log.mutate(**{REASON: stale.ifelse(LATE, log[REASON])}))
            judgement = Judgement(judgement.rows, judgement.rejected | {LATE: count})
        items = read_items(engine, recipe, self.raw)
        accepted, removed = accept(engine, recipe, log)
        if self.period.first is not None:
            in_time = accepted["$timestamp"] >= self.period.first
            accepted = accepted.mutate(**{"$target": accepted["$target"] & in_time})
        return Intake(log, accepted, items, removed), judgement
