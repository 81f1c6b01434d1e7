"""Figures of a finished study, for notebooks and talks: axes with units, colours and marks for any kind of eye.

Every function returns a matplotlib figure that nobody else holds; a notebook shows it, ``savefig`` writes it. A model
has the same colour and mark in all of them when all are given the same models.

Legend of shape suffixes: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from laser.report.plots import COLOURS, STYLES
from laser.study.conclusions import UNITS, Selection, Trial, against, named
from laser.study.plots import MARKERS, MILLION
from laser.study.reading import ModelRuns, PackedRun
from laser.study.statistics import Mean, mean_over_seeds, pareto

SETTINGS = {"font.size": 11, "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 2, "axes.axisbelow": True}
VALIDATION = "val/auc"
INSIDE = 9
"""Entries of a legend that the axes have room for."""


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
        return figure, figure.subplots()


def _legend(figure: Figure, axes: Axes) -> None:
    """Inside, or below where it would cover what it names."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= INSIDE:
        axes.legend(fontsize=9)
        return
    figure.set_figheight(figure.get_figheight() + 0.11 * len(labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)


def _mark(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _beside(axes: Axes, place: int, value_S: Sequence[float], mean: Mean, index: int) -> None:
    """A row: the mean with its interval, and below it a point for each seed."""
    spans = None if math.isnan(mean.low) else [[mean.value - mean.low], [mean.high - mean.value]]
    look = _mark(index)
    axes.errorbar(mean.value, place, xerr=spans, fmt=look["marker"], color=look["color"], markersize=9, capsize=5)
    axes.plot(value_S, [place + 0.22] * len(value_S), "|", color="0.25", markersize=9, markeredgewidth=1.5)


def by_model(models: Sequence[ModelRuns], metric: str = "auc") -> Figure:
    """A test metric of every model: mean, 95 % interval over seeds, single seeds."""
    figure, axes = _axes(8, 1.4 + 0.75 * len(models))
    for index, one in enumerate(models):
        _beside(axes, index, one.of(metric), mean_over_seeds(one.of(metric)), index)
    axes.set_yticks(range(len(models)), [f"{one.name}\n{len(one.seeds)} seeds" for one in models])
    axes.set(ylim=(len(models) - 0.4, -0.5))
    axes.set_xlabel(f"test {UNITS[metric]}: mean, 95 % interval over seeds; ticks below: single seeds")
    return figure


def differences(models: Sequence[ModelRuns], reference: str, metric: str = "auc") -> Figure:
    """Every other model minus the reference: mean over common seeds, 95 % interval, single seeds, verdict."""
    base, found = named(models, reference), against(models, reference, metric)
    indices = {one.name: index for index, one in enumerate(models)}
    figure, axes = _axes(8.5, 1.4 + 0.75 * len(found))
    for place, one in enumerate(found):
        _beside(axes, place, one.values, one.mean, indices[one.name])
    axes.axvline(0, color="0.2", linewidth=1.5, linestyle="--")
    axes.set_yticks(range(len(found)), [f"{one.name}\n{one.said}" for one in found])
    axes.set(ylim=(len(found) - 0.4, -0.5))
    better = "left" if metric == "log_loss" else "right"
    text = f"test {UNITS[metric]} minus that of {base.name}, same seed ({better} of 0 is better):\n"
    axes.set_xlabel(text + "mean, 95 % interval over seeds; ticks below: single seeds")
    return figure


def against_arithmetic(models: Sequence[ModelRuns]) -> Figure:
    """Test AUC against multiply-accumulates of the sequence part, and what nothing beats for less.

    Raises:
        ValueError: when no model's arithmetic is known.
    """
    known = {index: one for index, one in enumerate(models) if one.sequence_macs}
    if not known:
        raise ValueError("the multiply-accumulates of no model are known, so AUC cannot be drawn against them")
    means = [mean_over_seeds(one.of("auc")) for one in known.values()]
    cost = [(one.sequence_macs or 0) / MILLION for one in known.values()]
    figure, axes = _axes(8, 4.8)
    front = pareto(cost, [mean.value for mean in means])
    line = {"color": "0.45", "drawstyle": "steps-post", "linewidth": 1.5, "zorder": 1}
    axes.plot([cost[i] for i in front], [means[i].value for i in front], label="nothing is better for less", **line)
    for (index, one), x, mean in zip(known.items(), cost, means, strict=True):
        spans = None if math.isnan(mean.low) else [[mean.value - mean.low], [mean.high - mean.value]]
        look = _mark(index) | {"fmt": MARKERS[index % len(MARKERS)]}
        del look["marker"]
        axes.errorbar(x, mean.value, spans, markersize=9, capsize=5, label=f"{one.name}: {x:,.2f}", **look)
    axes.set(xscale="log", xlabel="sequence part, million multiply-accumulates a sample, as computed")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("test AUC, mean and\n95 % interval over seeds")
    _legend(figure, axes)
    return figure


def validation_against_test(models: Sequence[ModelRuns], found: Selection) -> Figure:
    """Every run's validation AUC beside its test AUC; on the line, test is above validation by the mean shift."""
    figure, axes = _axes(6.5, 5)
    for index, one in enumerate(models):
        axes.scatter(one.of("validation_auc"), one.of("auc"), s=60, label=one.name, **_mark(index))
    ends = [min(min(m.of("validation_auc")) for m in models), max(max(m.of("validation_auc")) for m in models)]
    shift = found.shift.value
    line = {"color": "0.45", "linestyle": "--", "linewidth": 1.5, "zorder": 1}
    axes.plot(ends, [end + shift for end in ends], label=f"validation {shift:+.4f} (mean of all runs)", **line)
    axes.set(xlabel="validation AUC of the chosen epoch, a mark for each seed", ylabel="test AUC of the same run")
    _legend(figure, axes)
    return figure


def learning_curves(models: Sequence[ModelRuns], runs: Sequence[PackedRun]) -> Figure:
    """Validation AUC by step of the runs that are reported, a line for each seed.

    Raises:
        ValueError: when the runs have no such curve.
    """
    figure, axes = _axes(8, 4.8)
    for index, one in enumerate(models):
        chosen = (one.model, one.setting, one.trial)
        own = [r for r in runs if r.tested and (r.model, r.setting, r.trial) == chosen and VALIDATION in r.curves]
        for number, run in enumerate(own):
            step, auc = run.curves[VALIDATION]
            look = _mark(index) | {"linestyle": STYLES[index % len(STYLES)], "linewidth": 1.3, "markersize": 5}
            axes.plot(step + 1, auc, label=one.name if number == 0 else None, **look)
    if not axes.lines:
        raise ValueError(f"no tested run has a curve {VALIDATION}; laser study keeps metrics.csv of runs with CSVLog")
    axes.set(xlabel="training steps (a mark at the end of each epoch)", ylabel="validation AUC, a line for each seed")
    _legend(figure, axes)
    return figure


def tuning(found: Sequence[Trial], models: Sequence[ModelRuns]) -> Figure:
    """Validation AUC of every trial, a line for each model; a ring is round the chosen one.

    Args:
        found: trials.
        models: those with tested runs, for their colours; others follow.
    """
    trial_names = list(dict.fromkeys(one.name for one in found))
    order = list(dict.fromkeys([one.name for one in models] + [one.label for one in found]))
    figure, axes = _axes(8, 4.8)
    for label in dict.fromkeys(one.label for one in found):
        own, index = [one for one in found if one.label == label], order.index(label)
        at, auc = [trial_names.index(one.name) for one in own], [one.validation_auc for one in own]
        name = label if index < len(models) else f"{label} (not tested)"
        axes.plot(at, auc, label=name, linestyle=STYLES[index % len(STYLES)], markersize=7, **_mark(index))
    chosen = [one for one in found if one.chosen]
    ring = {"s": 220, "facecolors": "none", "edgecolors": "0.1", "linewidths": 1.5}
    at = [trial_names.index(one.name) for one in chosen]
    axes.scatter(at, [one.validation_auc for one in chosen], label="chosen", zorder=3, **ring)
    axes.set_xticks(range(len(trial_names)), trial_names)
    axes.margins(x=0.1)
    seeds = max((len(one.seeds) for one in found), default=0)
    axes.set(xlabel="trial, the same for every model", ylabel=f"validation AUC, {seeds} seed{'s' * (seeds != 1)}")
    _legend(figure, axes)
    return figure
