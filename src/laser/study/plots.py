"""The figures of a study: AUC against cost, AUC by history length, scaling. SVG, colours and shapes for any eye."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from laser.report.plots import COLOURS, Drawing, look
from laser.study.results import LENGTH_EDGES, Pair, PairResult, Results
from laser.study.statistics import PowerLaw, pareto

MARKERS = "osD^vP*X<>hpd"
MILLION = 1e6
PUBLISHED, COMPUTED = "published form", "as computed"


def group_name(first: int) -> str:
    """Such as "50-199" or "1000 and more"."""
    after = [edge for edge in LENGTH_EDGES if edge > first]
    return f"{first}-{after[0] - 1}" if after else f"{first} and more"


def label_of(results: Results, pair: Pair) -> str:
    """How reports name a model with a setting."""
    model, setting = pair
    study = results.plan.study
    named = study.models[model].label or model
    return named if len(study.settings) == 1 else f"{named}, {study.settings[setting].label or setting}"


def pareto_plot(results: Results) -> Drawing | None:
    """Mean test AUC with its interval over users against MACs of the sequence part; None when no costs are known."""
    form = (
        PUBLISHED if all(sequence_macs(found, PUBLISHED) is not None for found in results.pairs.values()) else COMPUTED
    )
    known = {pair: found for pair, found in results.pairs.items() if sequence_macs(found, form) is not None}
    if not known:
        return None
    drawing = Drawing(2)
    axes = drawing.axes[0]
    cost = [max(sequence_macs(found, form) or 0, 1) / MILLION for found in known.values()]
    value = [found.mean("auc").value for found in known.values()]
    for index, (pair, found) in enumerate(known.items()):
        low, high = found.over_users("auc")
        spans = [[max(0.0, value[index] - low)], [max(0.0, high - value[index])]]
        style = {"color": COLOURS[index % len(COLOURS)], "fmt": MARKERS[index % len(MARKERS)], "markersize": 7}
        axes.errorbar(cost[index], value[index], spans, capsize=3, label=label_of(results, pair), **style)
    front = pareto(cost, value)
    axes.plot([cost[i] for i in front], [value[i] for i in front], color="0.5", linewidth=1, drawstyle="steps-post")
    axes.set(xscale="log", xlabel=f"sequence part, million MACs a sample, {form}", ylabel="test AUC")
    _legend_below(drawing, axes, "bars: 95 %, users resampled; line: nothing is better for less")
    return drawing


def _legend_below(drawing: Drawing, axes: Axes, note: str) -> None:
    axes.get_subplotspec().get_gridspec().set_height_ratios([3, 1])  # type: ignore[union-attr]
    drawing.figure.set_figheight(5.8)
    below = drawing.axes[1]
    below.axis("off")
    handles, labels = axes.get_legend_handles_labels()
    below.legend(handles, labels, loc="upper center", ncols=2, fontsize=9, title=note, title_fontsize=9)


def sequence_macs(found: PairResult, form: str) -> int | None:
    """MACs of the sequence part in one of the forms; the published one is known when costs were measured."""
    if form == PUBLISHED:
        return (found.costs or {}).get("paper_sequence_macs")
    return (found.metrics[0].get("model") or {}).get("sequence_macs")


def length_plot(results: Results) -> Drawing | None:
    """Test AUC by history length; None when all rows are of one group."""
    if len(results.groups) < 2:
        return None
    drawing = Drawing(2)
    axes = drawing.axes[0]
    for index, (pair, found) in enumerate(results.pairs.items()):
        values = [float(np.mean(found.by_length.get(group, [np.nan]))) for group in results.groups]
        marker = MARKERS[index % len(MARKERS)]
        axes.plot(range(len(values)), values, marker=marker, label=label_of(results, pair), **look(index))
    axes.set_xticks(range(len(results.groups)), [group_name(group) for group in results.groups])
    axes.set(xlabel="earlier events of the user", ylabel="test AUC, mean over seeds")
    _legend_below(drawing, axes, "")
    return drawing


def scaling_plot(results: Results, laws: dict[str, PowerLaw]) -> Drawing | None:
    """1 - AUC of every seed against the settings' values, with the power laws; None when there are none."""
    if not laws:
        return None
    drawing = Drawing()
    axes = drawing.axes[0]
    study = results.plan.study
    for index, (model, law) in enumerate(laws.items()):
        x_P, y_P = scaling_points(results, model)
        name = study.models[model].label or model
        colour = COLOURS[index % len(COLOURS)]
        axes.scatter(x_P, y_P, marker=MARKERS[index % len(MARKERS)], color=colour, s=24)
        line = np.geomspace(min(x_P), max(x_P), 50)
        text = f"{name}: exponent {law.exponent.value:.4f} [{law.exponent.low:.4f}, {law.exponent.high:.4f}]"
        axes.plot(line, law.scale * line**-law.exponent.value, color=colour, label=text)
    axes.set(xscale="log", yscale="log", xlabel="value of the setting", ylabel="1 - test AUC")
    axes.legend(fontsize=8)
    return drawing


def scaling_points(results: Results, model: str) -> tuple[list[float], list[float]]:
    """Values of settings and 1 - AUC, a point for each seed."""
    x_P: list[float] = []
    y_P: list[float] = []
    for (own, setting), found in results.pairs.items():
        value = results.plan.study.settings[setting].value
        if own == model and value is not None and value > 0:
            x_P += [float(value)] * len(found.seeds)
            y_P += [1 - auc for auc in found.test["auc"]]
    return x_P, y_P
