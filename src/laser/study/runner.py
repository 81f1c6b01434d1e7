"""Runs what studies ask for and keeps what it found; may be stopped at any time and started again."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from laser.study.progress import UNKNOWN, Durations, Plan, Step
from laser.study.runs import data_path
from laser.study.slots import Going, Slots
from laser.study.store import Store
from laser.study.worker import Task

POLL_SECONDS = 0.1
MARGIN = 1.2
"""A run is started when this many times its expected duration is left."""
ERROR = re.compile(r"(\[rank\d+\]: )?[\w.]+(Error|Exception)\b.*")


class Stopped(Exception):
    """The study was told to stop by a signal."""


@dataclass
class Limits:
    """How much may run at once and for how long.

    Args:
        jobs: runs at once.
        gpus: their GPUs in turn.
        seconds: of this call; a run that would not end in them is not started, and one that goes on then is stopped.
        began: when the call began, by ``time.monotonic``.
    """

    jobs: int = 1
    gpus: list[str] = field(default_factory=list)
    seconds: float = UNKNOWN
    began: float = field(default_factory=time.monotonic)


class Runner:
    """Works off the plans of some studies.

    Args:
        plans: of the studies, in order.
        store: where results go.
        limits: of this call.
        say: what tells a person of the progress.
        costs: measure costs instead of training.
    """

    def __init__(
        self, plans: list[Plan], store: Store, limits: Limits, say: Callable[[str], None], costs: bool = False
    ) -> None:
        self.plans, self.store, self.limits, self.say, self.costs = plans, store, limits, say, costs
        self.slots = Slots(limits.jobs, limits.gpus)
        self.durations = Durations(plans)
        self.steps: dict[str, Step] = {}
        self.end = limits.began + limits.seconds

    def run(self) -> bool:
        """Run until nothing is left to do or the time is over.

        Returns:
            Whether nothing is left that could be tried.

        Raises:
            Stopped: at SIGINT or SIGTERM; runs are ended first.
        """
        with stopping_on_signals():
            try:
                while self._start_some() or self.slots.going:
                    if time.monotonic() > self.end:
                        break
                    for going in self.slots.ended():
                        self._finish(going)
                    time.sleep(POLL_SECONDS)
            finally:
                self.slots.stop()
        return not any(plan.due(self.costs) for plan in self.plans)

    def _start_some(self) -> bool:
        """Start what there is room and time for; False when nothing was started."""
        started = False
        waiting = set(self.slots.going)
        for plan in self.plans:
            for step in plan.due(self.costs) if self.slots.free else []:
                if step.key in waiting or not self.slots.free or not self._in_time(step):
                    continue
                self._start(plan, step)
                waiting.add(step.key)
                started = True
        return started

    def _in_time(self, step: Step) -> bool:
        left = self.end - time.monotonic()
        expected = self.durations.expected(step)
        return left > (MARGIN * expected if expected < UNKNOWN else 0)

    def _start(self, plan: Plan, step: Step) -> None:
        facts = {
            **asdict(step.run),
            "key": step.key,
            "command": ["laser", "fit", *step.run.arguments()],
            "data": plan.data(data_path(step.run)),
            "jobs": self.limits.jobs,
        }
        task = Task(step.run.arguments(), str(self.store.work(step.key)), step.purpose, os.getpid(), facts)
        names = {"WANDB_RUN_GROUP": plan.study.name, "WANDB_JOB_TYPE": step.purpose}
        self.slots.start(step.key, task, names)
        self.steps[step.key] = step

    def _finish(self, going: Going) -> None:
        step = self.steps.pop(going.key)
        work = self.store.work(step.key)
        if going.process.returncode == 0 and (work / "record.json").exists():
            record = self.store.keep(step.key)
            for known in self.plans:
                known.records.pop(step.key, None)
            self.durations.add(step, going.seconds)
            self.say(f"{self._counts()} {step.run}: {outcome(record)}, {duration(going.seconds)}{self._left()}")
            return
        for known in self.plans:
            known.failed.add(step.key)
        code = going.process.returncode
        self.store.keep_failure(step.key, {**asdict(step.run), "exit_code": code})
        self.say(f"{self._counts()} {step.run}: FAILED with exit code {code}: {last_line(work / 'log.txt')}")

    def _counts(self) -> str:
        if self.costs:
            steps = [(plan, step) for plan in self.plans for step in plan.costs()]
            return f"[{sum(plan.record(step) is not None for plan, step in steps)}/{len(steps)}]"
        done, total = sum(plan.done() for plan in self.plans), sum(plan.total for plan in self.plans)
        return f"[{done}/{total}]"

    def _left(self) -> str:
        """Time that the rest will take with as many runs at once as now."""
        due = [step for plan in self.plans for step in plan.due(self.costs)]
        unknown = 0 if self.costs else sum(plan.total - plan.done() - len(plan.due()) for plan in self.plans)
        expected = [self.durations.expected(step) for step in due]
        mean = sum(expected) / len(expected) if expected else 0.0
        gone = sum(going.seconds for going in self.slots.going.values())
        seconds = max(0.0, sum(expected) + mean * unknown - gone) / self.limits.jobs
        return f"; about {duration(seconds)} left" if due or unknown > 0 else ""


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into ``Stopped``, so that runs are ended and nothing is left half written."""

    def stop(number: int, _: Any) -> None:
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def outcome(record: dict[str, Any]) -> str:
    """What was found, in words; test figures are for the report."""
    if costs := record.get("costs"):
        return f"{costs['samples_per_second']:,.0f} samples/s, {costs['latency_ms']['1']['median']:.2f} ms a request"
    validation = record["validation"]
    return f"validation AUC {validation['auc']:.4f} in epoch {validation['epoch']} of {validation['epochs']}"


def duration(seconds: float) -> str:
    """Such as "42 s" or "3.5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def last_line(log: Path) -> str:
    """What a failed run said last, from the line on that names an error."""
    lines = (log.read_text(errors="replace") if log.exists() else "").strip().splitlines()
    begins = [index for index, line in enumerate(lines) if ERROR.match(line)] or [max(0, len(lines) - 1)]
    return " ".join(" ".join(lines[begins[-1] :]).split())[:300] or "it said nothing"
