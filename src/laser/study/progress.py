"""Which runs of studies are due, finished or lost, and how long the rest will take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laser.study.design import Study
from laser.study.runs import Run, data_path, make_run
from laser.study.store import Store
from laser.study.worker import Purpose

UNKNOWN = float("inf")
TEST_SECONDS = 30.0
"""What a test is thought to take at least."""
COSTS = "costs."
"""Begins the key of a measurement; the rest is that of the run."""


@dataclass(frozen=True)
class Step:
    """A run and how far it shall go."""

    run: Run
    key: str
    purpose: Purpose


@dataclass
class Plan:
    """The runs of one study, as far as they are known: which trial wins is known when all have been tried.

    Args:
        study: the study.
        store: where results lie.
        data: fingerprint of the data set in a folder.
        failed: keys of runs that have failed in this call.
        models: whose runs are due; None means all.
    """

    study: Study
    store: Store
    data: Callable[[Path], str]
    failed: set[str] = field(default_factory=set)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: frozenset[str] | None = None

    def record(self, step: Step) -> dict[str, Any] | None:
        """Of a step that is done."""
        found = self.records.get(step.key) or self.store.record(step.key)
        if found is not None:
            self.records[step.key] = found
        return None if found is None or (step.purpose == "final" and not found["tested"]) else found

    def step(self, model: str, setting: str, trial: int, seed: int, purpose: Purpose) -> Step:
        """The step for these choices."""
        run = make_run(self.study, model, setting, trial, seed)
        return Step(run, (COSTS if purpose == "costs" else "") + run.key(self.data(data_path(run))), purpose)

    def data_set(self, setting: str) -> str:
        """Fingerprint of the data set that all models have in this setting.

        Raises:
            ValueError: when they do not have the same one.
        """
        paths = {data_path(make_run(self.study, model, setting, 0, 0)) for model in self.study.models}
        found = {self.data(path) for path in paths}
        if len(found) > 1:
            raise ValueError(
                f"models of study {self.study.name} are on several data sets in setting {setting} "
                f"({', '.join(sorted(map(str, paths)))}); name data.path in settings, or once for all"
            )
        return found.pop()

    def data_sets(self) -> dict[str, list[str]]:
        """Settings by the fingerprint of their data set, in order."""
        found: dict[str, list[str]] = {}
        for setting in self.study.settings:
            found.setdefault(self.data_set(setting), []).append(setting)
        return found

    def tuning(self, model: str, setting: str) -> list[list[Step]]:
        """Steps that choose a trial, by trial and tuning seed; none when there is nothing to choose."""
        trials = range(len(self.study.models[model].trials))
        taken_over = self.study.tuning_setting not in ("", setting) or self.study.tuning_model not in ("", model)
        if len(trials) == 1 or taken_over:
            return []
        return [[self.step(model, setting, t, seed, "tuning") for seed in self.study.tuning_seeds] for t in trials]

    def choice(self, model: str, setting: str) -> int | None:
        """The trial with the best mean validation AUC over the tuning seeds; None while some are due.

        A trial of which a run failed is not chosen. -1 when all have failed.
        """
        if len(self.study.models[model].trials) == 1:
            return 0
        by_trial = self.tuning(self.study.tuning_model or model, self.study.tuning_setting or setting)
        if any(self.record(step) is None and step.key not in self.failed for steps in by_trial for step in steps):
            return None
        means = [self.mean_validation(steps) for steps in by_trial]
        return max(range(len(means)), key=means.__getitem__) if max(means) > -math.inf else -1

    def mean_validation(self, steps: list[Step], metric: str = "auc") -> float:
        """Mean validation AUC, or another metric of the same epoch; minus infinity when a run is missing."""
        records = [self.record(step) for step in steps]
        if any(record is None for record in records):
            return -math.inf
        return statistics.fmean(
            record["first_validation"].get(metric, math.nan) for record in records if record is not None
        )

    def final(self, model: str, setting: str) -> list[Step]:
        """Steps that are reported; empty while the trial is not chosen, or none can be."""
        trial = self.choice(model, setting)
        if trial is None or trial < 0:
            return []
        return [self.step(model, setting, trial, seed, "final") for seed in self.study.seeds]

    def costs(self) -> list[Step]:
        """Steps that measure what each model of which a seed is done costs."""
        chosen = [
            steps[0].run for pair in self.study.pairs if (steps := self.final(*pair)) and any(map(self.record, steps))
        ]
        return [self.step(run.model, run.setting, run.trial, run.seed, "costs") for run in chosen]

    def steps(self) -> list[Step]:
        """All steps that are known, in the order in which they are due.

        First tests of what is trained here already, which take seconds: without its checkpoints, on another machine,
        it would be trained again. Then tuning, so that all models' trials are chosen early.
        """
        tuning = [step for pair in self.study.pairs for steps in self.tuning(*pair) for step in steps]
        seeds = range(len(self.study.seeds))
        finals = [self.final(*pair) for pair in self.study.pairs]
        # Seed by seed, so that a study that is stopped early has compared all models on the same seeds.
        final = [steps[index] for index in seeds for steps in finals if steps]
        trained = [step for step in final if self.store.trained(step.key)]
        return trained + tuning + [step for step in final if step not in trained]

    def due(self, costs: bool = False) -> list[Step]:
        """Steps of ``models`` that are known and neither done nor failed: runs, or measurements of costs."""
        wanted = self.study.models if self.models is None else self.models
        steps = [step for step in (self.costs() if costs else self.steps()) if step.run.model in wanted]
        return [step for step in steps if step.key not in self.failed and self.record(step) is None]

    @property
    def total(self) -> int:
        """Steps of the whole study, known or not; those that serve two purposes count twice."""
        tuning = sum(len(steps) for pair in self.study.pairs for steps in self.tuning(*pair))
        return tuning + len(self.study.pairs) * len(self.study.seeds)

    def done(self) -> int:
        """Steps that are done."""
        return sum(self.record(step) is not None for step in self.steps())


class Durations:
    """Seconds that runs take, from those of the same model and setting, or else the longest of any.

    Args:
        plans: the studies, whose records are read.
    """

    def __init__(self, plans: list[Plan]) -> None:
        self.plans = plans
        self.seen: dict[tuple[str, str, bool], list[float]] = {}
        self.tests: list[float] = []
        for plan in plans:
            for step in plan.steps():
                if record := plan.record(step):
                    self.add(step, sum(record["seconds"].values()))
                    self.tests.append(record["seconds"].get("test", 0.0))

    def add(self, step: Step, seconds: float) -> None:
        """Learn from a finished run."""
        self.seen.setdefault(_kind(step), []).append(seconds)

    def expected(self, step: Step) -> float:
        """Of one run; infinite when nothing is known. Where only the test is left, that of the longest test."""
        if step.purpose == "final" and any(plan.store.trained(step.key) for plan in self.plans):
            return max([TEST_SECONDS, *self.tests])
        own = self.seen.get(_kind(step))
        every = [seconds for known in self.seen.values() for seconds in known]
        return max(own or every or [UNKNOWN])


def _kind(step: Step) -> tuple[str, str, bool]:
    return step.run.model, step.run.setting, step.purpose == "costs"
