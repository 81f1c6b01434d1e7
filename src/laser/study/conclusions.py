"""What a finished study's runs allow to say: seeds, paired differences, selection on validation, tuning.

Rows of the test split are not read here. So intervals are over seeds, not over users: ``study.md`` has both.

Legend of shape suffixes: S seeds; N runs.
"""

from __future__ import annotations

import math
import statistics as plain
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laser.report.table import Table
from laser.study.reading import ModelRuns, PackedRun
from laser.study.runs import ELSEWHERE
from laser.study.statistics import Mean, holm, mean_over_seeds, paired_t

UNITS = {"auc": "AUC", "gauc": "GAUC", "log_loss": "log-loss"}


@dataclass(frozen=True)
class PairedDifference:
    """A model minus the reference on the seeds that both have.

    Args:
        name: of the model.
        values: S, a difference for each common seed.
        mean: with the 95 % interval of Student's t.
        p: of the paired t-test; NaN with fewer than two seeds.
        p_corrected: by Holm's method, for all models compared with this reference.
    """

    name: str
    values: list[float]
    mean: Mean
    p: float
    p_corrected: float

    @property
    def said(self) -> str:
        """At 5 %, corrected."""
        if math.isnan(self.p_corrected):
            return "one seed: no test"
        return "significant" if self.p_corrected < 0.05 else "not significant"


def named(models: Sequence[ModelRuns], name: str) -> ModelRuns:
    """The model with this label or key.

    Raises:
        ValueError: when there is none, or there are several.
    """
    found = [one for one in models if name in (one.name, one.model)]
    if len(found) != 1:
        names = "; ".join(one.name for one in models)
        raise ValueError(f"{len(found)} models are named {name!r}, expected one of: {names}")
    return found[0]


def against(models: Sequence[ModelRuns], reference: str, metric: str = "auc") -> list[PairedDifference]:
    """Every other model minus the reference, seed by seed; those without a common seed or data set are left out.

    Raises:
        ValueError: when no model has the reference's name, or none can be compared with it.
    """
    base = named(models, reference)
    beside = [one for one in models if one is not base and one.data == base.data]
    common = {one.name: [s for s in one.seeds if s in base.seeds] for one in beside}
    kept = [one for one in models if common.get(one.name)]
    if not kept:
        raise ValueError(f"no other model has a seed of {base.name}, so nothing can be compared with it")
    pairs = [[[m.values[metric][s] for s in common[one.name]] for m in (one, base)] for one in kept]
    tests = [paired_t(one_S, base_S) for one_S, base_S in pairs]
    differences = [np.subtract(one_S, base_S).tolist() for one_S, base_S in pairs]
    return [
        PairedDifference(one.name, value_S, mean_over_seeds(value_S), p, corrected)
        for one, value_S, p, corrected in zip(kept, differences, tests, holm(tests), strict=True)
    ]


def differences_table(found: Sequence[PairedDifference], reference: str) -> Table:
    """Differences with intervals, p-values and what they say."""
    names = ("p, paired t-test", "p, corrected", "at 5 %")
    rows = [
        (one.name, f"{len(one.values)}", interval(one.mean, "+"), f"{one.p:.3f}", f"{one.p_corrected:.3f}", one.said)
        for one in found
    ]
    return Table((f"minus {reference}", "common seeds", "difference [95 % over seeds]", *names), tuple(rows))


def interval(mean: Mean, sign: str = "") -> str:
    """Such as ``0.7925 [0.7897, 0.7953]``."""
    bounds = "" if math.isnan(mean.low) else f" [{mean.low:{sign}.4f}, {mean.high:{sign}.4f}]"
    return f"{mean.value:{sign}.4f}{bounds}"


def quality_table(models: Sequence[ModelRuns], planned_seeds: int) -> Table:
    """Means of test metrics with 95 % intervals over seeds, and how many of the planned seeds are there."""
    rows = [
        (one.name, f"{len(one.seeds)} of {planned_seeds}", *(interval(mean_over_seeds(one.of(m))) for m in UNITS))
        for one in models
    ]
    return Table(("model", "seeds", *(f"test {unit}" for unit in UNITS.values())), tuple(rows))


@dataclass(frozen=True)
class Selection:
    """How validation AUC and test AUC of the same runs go together.

    Args:
        runs: number of runs.
        shift: test minus validation, mean over all runs, with the 95 % interval over them.
        shifts: the same, by model.
        within: correlation of both after each model's means are taken away; NaN when no model has two seeds.
        best: names of the models with the best mean validation AUC and the best mean test AUC.
    """

    runs: int
    shift: Mean
    shifts: dict[str, Mean]
    within: float
    best: tuple[str, str]

    def table(self) -> Table:
        """Test minus validation by model, and of all runs."""
        rows = [(name, interval(mean, "+")) for name, mean in self.shifts.items()]
        rows.append((f"all {self.runs} runs", interval(self.shift, "+")))
        return Table(("model", "test AUC - validation AUC [95 % over seeds]"), tuple(rows))


def selection(models: Sequence[ModelRuns]) -> Selection:
    """Compare validation with test AUC, run by run."""
    shift_by_name = {m.name: np.subtract(m.of("auc"), m.of("validation_auc")) for m in models}
    validation_N, test_N = (_centred(models, metric) for metric in ("validation_auc", "auc"))
    varied = min(float(np.ptp(validation_N)), float(np.ptp(test_N))) > 0
    within = float(np.corrcoef(validation_N, test_N)[0, 1]) if varied else math.nan
    best = [max(models, key=lambda m: plain.fmean(m.of(metric))).name for metric in ("validation_auc", "auc")]
    every_N = np.concatenate(list(shift_by_name.values()))
    shifts = {name: mean_over_seeds(value_S.tolist()) for name, value_S in shift_by_name.items()}
    return Selection(len(every_N), mean_over_seeds(every_N.tolist()), shifts, within, (best[0], best[1]))


def _centred(models: Sequence[ModelRuns], metric: str) -> np.ndarray:
    """Values [N] of all runs, each less the mean of its model."""
    return np.concatenate([np.array(one.of(metric)) - plain.fmean(one.of(metric)) for one in models])


@dataclass(frozen=True)
class Trial:
    """One trial of a model's tuning.

    Args:
        model: key in the study's file.
        setting: key of the setting.
        label: of the model, for people.
        name: what distinguishes it, such as "learning rate 0.004".
        seeds: that all trials of the model have.
        validation_auc: mean over these.
        chosen: whether it is the best of its model.
        tested: whether the model has tested runs of it.
    """

    model: str
    setting: str
    label: str
    name: str
    seeds: list[int]
    validation_auc: float
    chosen: bool
    tested: bool


def trials(runs: Sequence[PackedRun], models: Sequence[ModelRuns]) -> list[Trial]:
    """Trials of every model and setting with more than one; only seeds that all its trials have are compared.

    Args:
        runs: all that are finished.
        models: those with tested runs, which come first and have labels; others are named by their keys.
    """
    labels = {(one.model, one.setting): one.name for one in models}
    pairs = [
        *labels,
        *dict.fromkeys((run.model, run.setting) for run in runs if (run.model, run.setting) not in labels),
    ]
    found: list[Trial] = []
    for pair in pairs:
        by_trial: dict[int, list[PackedRun]] = {}
        for run in runs:
            if (run.model, run.setting) == pair:
                by_trial.setdefault(run.trial, []).append(run)
        if len(by_trial) > 1:
            found += _trials_of(pair, labels.get(pair, pair[0]), dict(sorted(by_trial.items())))
    return found


def _trials_of(pair: tuple[str, str], label: str, by_trial: dict[int, list[PackedRun]]) -> list[Trial]:
    common = sorted(set.intersection(*({run.seed for run in runs} for runs in by_trial.values())))
    if not common:
        return []
    means = {
        trial: plain.fmean(run.validation_auc for run in runs if run.seed in common) for trial, runs in by_trial.items()
    }
    best = max(means, key=means.__getitem__)
    names = _names({trial: runs[0].options for trial, runs in by_trial.items()})
    return [
        Trial(*pair, label, names[trial], common, means[trial], trial == best, any(run.tested for run in runs))
        for trial, runs in by_trial.items()
    ]


def _names(options: dict[int, dict[str, object]]) -> dict[int, str]:
    """What differs between the trials, by the last part of an option's name; not what makes no other run."""
    keys = dict.fromkeys(key for own in options.values() for key in own if key not in ELSEWHERE)
    differing = [key for key in keys if len({str(own.get(key)) for own in options.values()}) > 1]
    return {
        trial: ", ".join(dict.fromkeys(f"{key.split('.')[-1].replace('_', ' ')} {own.get(key)}" for key in differing))
        for trial, own in options.items()
    }


def trials_table(found: Sequence[Trial]) -> Table:
    """Every trial with its validation AUC."""
    rows = [
        (
            one.label,
            one.name,
            f"{len(one.seeds)}",
            f"{one.validation_auc:.4f}",
            "chosen" if one.chosen else "",
            ("tested" if one.tested else "not tested: missing") if one.chosen else "",
        )
        for one in found
    ]
    return Table(("model", "trial", "seeds", "validation AUC", "", ""), tuple(rows))
