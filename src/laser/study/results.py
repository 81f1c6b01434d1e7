"""What a study found, as tables: one row for a run, one for a model with a setting, one for a comparison.

Legend of shape suffixes: N rows of the test split; U users; S seeds; R bootstrap replicates.
"""

from __future__ import annotations

import itertools
import statistics as plain
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from laser.report.scores import Ranking
from laser.study.progress import Plan, Step
from laser.study.statistics import (
    METRICS,
    MOST_USERS,
    Difference,
    Mean,
    UserScores,
    bootstrap_interval,
    compare,
    draw_users,
    holm,
    mean_over_seeds,
    paired_t,
)

REPLICATES, REPLICATES_OF_MANY_USERS = 10_000, 200
LONG = 500
"""Earlier events from which on a user's rows count as those of a long history, with an AUC of their own."""
LENGTH_EDGES = (0, 50, 200, 500, 1000, 2000)
"""First history length of each group for which an AUC is given; the last one is open."""
Pair = tuple[str, str]


@dataclass
class PairResult:
    """A model with a setting, over its seeds.

    Args:
        records: of its runs, in the order of ``seeds``.
        metrics: their ``metrics.json``.
        seeds: that are done.
        trial: index of the trial that validation chose.
        costs: measured, or None.
        test: metrics of each seed's test, by name.
        by_length: AUC [S] of the test rows of each group of history lengths, by the group's first length.
        long: AUC [S] of the test rows with at least ``LONG`` earlier events; NaN without any.
        replicates: bootstrap values [S, R] of each metric.
    """

    records: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    seeds: list[int]
    trial: int
    costs: dict[str, Any] | None
    test: dict[str, list[float]] = field(default_factory=dict)
    by_length: dict[int, list[float]] = field(default_factory=dict)
    long: list[float] = field(default_factory=list)
    replicates: dict[str, np.ndarray] = field(default_factory=dict)

    def mean(self, metric: str) -> Mean:
        """Over seeds."""
        return mean_over_seeds(self.test[metric])

    def over_users(self, metric: str) -> tuple[float, float]:
        """Interval of the mean over these seeds, over resampled users."""
        return bootstrap_interval(self.replicates[metric].mean(0))


@dataclass(frozen=True)
class Comparison:
    """Two pairs on the same rows, and their difference in a metric with p-values corrected for all of its family.

    Args:
        one: model and setting.
        other: what is subtracted.
        metric: name.
        difference: with p-values as they are.
        p_corrected: of the bootstrap, by Holm's method.
        p_seeds_corrected: of the t-test over seeds, likewise; NaN where there is none.
    """

    one: Pair
    other: Pair
    metric: str
    difference: Difference
    p_corrected: float
    p_seeds_corrected: float

    @property
    def significant(self) -> bool:
        """At 5 %, corrected."""
        return self.p_corrected < 0.05


@dataclass
class Results:
    """All that a study found.

    Args:
        plan: of the study.
        pairs: results by model and setting, in the study's order; those without any finished run are missing.
        groups: first lengths of the groups that occur.
        comparisons: of subjects with baselines, and of settings with the first one.
    """

    plan: Plan
    pairs: dict[Pair, PairResult]
    groups: list[int]
    comparisons: list[Comparison]

    def panels(self) -> list[dict[Pair, PairResult]]:
        """Pairs with finished runs, by data set: what may stand side by side."""
        by_data = [
            {pair: found for pair, found in self.pairs.items() if pair[1] in settings}
            for settings in self.plan.data_sets().values()
        ]
        return [own for own in by_data if own]

    def best_possible(self, setting: str) -> dict[str, float]:
        """Test metrics that no model can beat but by chance, by name, where the study's file gives them."""
        return self.plan.study.settings[setting].best

    def best_baseline(self, setting: str) -> str | None:
        """The model that is no subject with the best mean validation AUC: test figures do not choose it."""
        means = {
            model: plain.fmean(record["validation"]["auc"] for record in found.records)
            for (model, own), found in self.pairs.items()
            if own == setting and model not in self.plan.study.subjects
        }
        return max(means, key=means.__getitem__) if means else None


def collect(plan: Plan) -> Results:
    """Read a study's finished runs and compare them.

    Raises:
        ValueError: when files are missing, or runs were tested on different rows.
    """
    pairs = {pair: found for pair in plan.study.pairs if (found := _pair(plan, *pair)) is not None}
    for settings in plan.data_sets().values():
        own = {pair: found for pair, found in pairs.items() if pair[1] in settings}
        columns = {pair: _columns(plan, found) for pair, found in own.items()}
        length_N = _longest(columns)
        for pair, found in own.items():
            _score(found, columns[pair], length_N)
    groups = [edge for edge in LENGTH_EDGES if any(edge in found.by_length for found in pairs.values())]
    results = Results(plan, pairs, groups, [])
    for settings in plan.data_sets().values():
        results.comparisons += compare_models(results, settings) + compare_settings(results, settings)
    return results


def _pair(plan: Plan, model: str, setting: str) -> PairResult | None:
    steps = [step for step in plan.final(model, setting) if plan.record(step) is not None]
    if not steps:
        return None
    records = [plan.record(step) or {} for step in steps]
    cost: Step = plan.step(model, setting, steps[0].run.trial, plan.study.seeds[0], "costs")
    costs = (plan.record(cost) or {}).get("costs")
    metrics = [plan.store.metrics(step.key) for step in steps]
    return PairResult(records, metrics, [step.run.seed for step in steps], steps[0].run.trial, costs)


def _columns(plan: Plan, found: PairResult) -> list[dict[str, np.ndarray]]:
    return [plan.store.predictions(record, record["key"]) for record in found.records]


def _longest(columns: dict[Pair, list[dict[str, np.ndarray]]]) -> np.ndarray:
    """History lengths [N] as the runs with the longest histories saw them: a shorter limit hides the true length.

    Raises:
        ValueError: when runs were tested on different rows.
    """
    every = list(itertools.chain(*columns.values()))
    for one in every:
        if any(not np.array_equal(one[name], every[0][name]) for name in ("row", "user", "label")):
            raise ValueError("runs of this study were tested on different rows; remove those of earlier data sets")
    return np.max([one["history_length"] for one in every], axis=0) if every else np.zeros(0)


def _score(found: PairResult, columns: list[dict[str, np.ndarray]], length_N: np.ndarray) -> None:
    """Fill in test metrics as the runs told them, and what their predictions give."""
    tests = [with_nan(metrics["test"]) for metrics in found.metrics]
    found.test = {name: [test[name] for test in tests] for name in tests[0]}
    group_N = np.searchsorted(LENGTH_EDGES, length_N, side="right") - 1
    found.long = _areas(columns, length_N >= LONG)
    for index in np.unique(group_N).tolist():
        found.by_length[LENGTH_EDGES[index]] = _areas(columns, group_N == index)
    users, user_N = np.unique(columns[0]["user"], return_inverse=True)
    weight_RU = draw_users(len(users), REPLICATES if len(users) <= MOST_USERS else REPLICATES_OF_MANY_USERS)
    seeds = [UserScores(one["probability"], one["label"], user_N, len(users)).values(weight_RU) for one in columns]
    found.replicates = {metric: np.stack([values[metric] for values in seeds]) for metric in METRICS}


def _areas(columns: list[dict[str, np.ndarray]], kept_N: np.ndarray) -> list[float]:
    """AUC [S] of some of the rows."""
    return [Ranking(one["probability"][kept_N], one["label"][kept_N]).auc() for one in columns]


def with_nan(test: dict[str, float | None]) -> dict[str, float]:
    """Test metrics of a run; NaN where one is not defined."""
    return {name: float("nan") if value is None else value for name, value in test.items()}


def compare_models(results: Results, settings: list[str]) -> list[Comparison]:
    """Every subject minus every baseline and minus the first subject, by setting: one family for each metric.

    Args:
        results: of the study.
        settings: those with one data set.
    """
    subjects = results.plan.study.subjects
    pairs = [
        ((subject, setting), (model, setting))
        for subject in subjects
        for model, setting in results.pairs
        if setting in settings and (subject, setting) in results.pairs
        if model not in subjects or model == subjects[0] != subject
    ]
    return _family(results, pairs)


def compare_settings(results: Results, settings: list[str]) -> list[Comparison]:
    """Every model's other settings of a data set minus the first one: one family for each metric."""
    first, *others = settings
    pairs = [
        ((model, setting), (model, first))
        for model, setting in results.pairs
        if setting in others and (model, first) in results.pairs
    ]
    return _family(results, pairs)


def _family(results: Results, pairs: list[tuple[Pair, Pair]]) -> list[Comparison]:
    found = []
    for metric in METRICS:
        differences = [_difference(results.pairs[one], results.pairs[other], metric) for one, other in pairs]
        corrected = holm([difference.p for difference in differences])
        over_seeds = holm([difference.p_seeds for difference in differences])
        found += [
            Comparison(one, other, metric, difference, p, p_seeds)
            for (one, other), difference, p, p_seeds in zip(pairs, differences, corrected, over_seeds, strict=True)
        ]
    return found


def _difference(one: PairResult, other: PairResult, metric: str) -> Difference:
    common = [seed for seed in one.seeds if seed in other.seeds]
    paired = [[found.test[metric][found.seeds.index(seed)] for seed in common] for found in (one, other)]
    found = compare(one.replicates[metric], other.replicates[metric], one.test[metric], other.test[metric])
    return replace(found, p_seeds=paired_t(*paired))
