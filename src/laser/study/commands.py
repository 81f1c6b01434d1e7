"""``laser study``: runs studies and writes their reports."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from laser.data.fingerprint import fingerprint
from laser.study.design import Study, read_study
from laser.study.page import write_study
from laser.study.progress import UNKNOWN, Plan
from laser.study.results import collect
from laser.study.runner import Limits, Runner, Stopped, duration
from laser.study.slots import gpu_names
from laser.study.store import Store

FAILED, STOPPED = 1, 130


def main(arguments: list[str]) -> int:
    """Run the verb.

    Returns:
        0 when all that was tried succeeded, 1 when a run failed, 130 after a signal.

    Raises:
        ValueError: for a mistake of the user.
    """
    began = time.monotonic()
    options = parser().parse_args(arguments)
    if options.jobs < 1:
        raise ValueError(f"--jobs is {options.jobs}, expected at least 1")
    seconds = UNKNOWN if options.minutes is None else 60 * options.minutes
    limits = Limits(options.jobs, gpu_names(options.gpus), seconds, began)
    studies = [with_options(read_study(path), options.set) for path in options.studies]
    if len({study.name for study in studies}) < len(studies):
        raise ValueError("two of these studies have the same name; give each its own")
    store = Store(options.out)
    with store.locked():
        plans = make_plans(studies, store, options.models)
        wanted = Wanted(not options.costs_only, not options.no_costs)
        code = 0 if options.report else report_progress(plans, store, limits, wanted)
        for plan in plans:
            say(str(write_study(collect(plan))))
        if options.pack is not None:
            print(f"{options.pack}: {store.pack(options.pack) / 2**20:.1f} MiB", flush=True)
    return code


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    found = argparse.ArgumentParser(
        prog="laser study",
        description="Train and test models with equal tuning budgets and several seeds, and compare them. Stopped, "
        "killed or out of time, the same command goes on where it was; a run whose setting changed is a new run.",
    )
    found.add_argument("studies", nargs="+", type=Path, metavar="STUDY", help="such as conf/study/assistments.yaml")
    found.add_argument("--out", type=Path, default=Path("runs/study"), help="results of all studies; runs/study")
    found.add_argument("--jobs", type=int, default=1, help="runs at once")
    found.add_argument("--gpus", help="2: spread runs over the first two GPUs; 0,3: over these")
    found.add_argument("--minutes", type=float, help="start no run that would not end in this time")
    found.add_argument("--report", action="store_true", help="run nothing, write the reports of what is there")
    found.add_argument("--models", help="run these only, such as laser,din; the report is of all that are done")
    costs = found.add_mutually_exclusive_group()
    costs.add_argument("--no-costs", action="store_true", help="do not measure speed, memory and latency at the end")
    costs.add_argument("--costs-only", action="store_true", help="measure them of the models that have a tested run")
    found.add_argument("--pack", type=Path, help="write all results but checkpoints into this .tar.xz at the end")
    found.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="an option of laser fit for all runs"
    )
    return found


def with_options(study: Study, said: list[str]) -> Study:
    """The study with options of the command line, which go over those of the study."""
    if wrong := [item for item in said if "=" not in item]:
        raise ValueError(f"--set {wrong[0]} is not KEY=VALUE, such as data.path=prepared/mine")
    return replace(study, options=study.options | dict(item.split("=", 1) for item in said))


def make_plans(studies: list[Study], store: Store, models: str | None = None) -> list[Plan]:
    """Plans of the studies; each data set's fingerprint is taken once, here, so that one that is missing is told now.

    Args:
        studies: the studies.
        store: where results lie.
        models: names of those to run, separated by commas; None means all. A study runs those that it has.

    Raises:
        ValueError: when a name is of no study's model, or a data set is missing.
    """
    wanted = frozenset(filter(None, (models or "").split(",")))
    if unknown := sorted(wanted - {model for study in studies for model in study.models}):
        have = "; ".join(f"study {study.name} has {', '.join(study.models)}" for study in studies)
        raise ValueError(f"--models names {unknown[0]!r}, {have}")
    known = cache(fingerprint)
    plans = [Plan(study, store, known, models=wanted & study.models.keys() if wanted else None) for study in studies]
    for plan in plans:
        plan.data_sets()
    return plans


def say(text: str) -> None:
    """Tell a person."""
    print(text, flush=True)


class Wanted(NamedTuple):
    """What is to be done: training and testing, measuring of costs, or both."""

    runs: bool
    costs: bool


def report_progress(plans: list[Plan], store: Store, limits: Limits, wanted: Wanted) -> int:
    """Run, and say what came of it."""
    done, total = sum(plan.done() for plan in plans), sum(plan.total for plan in plans)
    limit = "" if limits.seconds == UNKNOWN else f", for at most {duration(limits.seconds)}"
    print(f"laser study: {done} of {total} runs are done; {limits.jobs} at once{limit}", flush=True)
    code = 0
    try:
        complete = not wanted.runs or Runner(plans, store, limits, say).run()
        if complete and wanted.costs:
            say("laser study: measuring costs, one run a GPU at a time")
            alone = replace(limits, jobs=max(1, len(limits.gpus)))
            complete = Runner(plans, store, alone, say, costs=True).run()
        if not complete:
            print("laser study: out of time; the same command goes on", flush=True)
    except Stopped as signal_name:
        print(f"laser study: stopped by {signal_name}; the same command goes on", flush=True)
        code = STOPPED
    failed = sorted(set().union(*(plan.failed for plan in plans)))
    if failed:
        print(f"laser study: {len(failed)} runs failed; their logs are in {store.path / 'failed'}", flush=True)
    return code or (FAILED if failed else 0)
