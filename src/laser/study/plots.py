"""The figures of a study: AUC against cost, AUC by history length, scaling. SVG, colours and shapes for any eye."""

from __future__ import annotations

from collections.abc import Iterable

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


def name_within(results: Results, pair: Pair, panel: Iterable[Pair]) -> str:
    """How a panel's legend names a pair: by its model alone, where the panel has one setting."""
    model, setting = pair
    alone = {own for _, own in panel} == {setting}
    return results.plan.study.models[model].label or model if alone else label_of(results, pair)


def look_of(results: Results, panel: dict[Pair, PairResult]) -> dict[Pair, int]:
    """Number of each pair's colour and mark: in several panels, a model has the same in all of them."""
    if len(results.panels()) == 1:
        return {pair: index for index, pair in enumerate(panel)}
    order = list(results.plan.study.models)
    return {pair: order.index(pair[0]) for pair in panel}


def panel_title(results: Results, panel: dict[Pair, PairResult]) -> str:
    """What a panel is about; empty when there is one only, which needs no telling."""
    study = results.plan.study
    settings = dict.fromkeys(setting for _, setting in panel)
    named = ", ".join(study.settings[setting].label or setting for setting in settings)
    return named if len(results.panels()) > 1 else ""


def pareto_plot(results: Results) -> Drawing | None:
    """Mean test AUC with its interval over users against MACs of the sequence part; None when no costs are known.

    A panel for each data set, with the best possible AUC where it is known.
    """
    every = results.pairs.values()
    form = PUBLISHED if all(sequence_macs(found, PUBLISHED) is not None for found in every) else COMPUTED
    panels = [
        {pair: found for pair, found in panel.items() if sequence_macs(found, form) is not None}
        for panel in results.panels()
    ]
    panels = [panel for panel in panels if panel]
    if not panels:
        return None
    drawing = Drawing(len(panels) + 1)
    for axes, panel in zip(drawing.axes, panels, strict=False):
        _pareto_panel(results, axes, panel, form)
    _legend_below(drawing, "bars: 95 %, users resampled; line: nothing is better for less")
    return drawing


def _pareto_panel(results: Results, axes: Axes, panel: dict[Pair, PairResult], form: str) -> None:
    looks = look_of(results, panel)
    cost = [max(sequence_macs(found, form) or 0, 1) / MILLION for found in panel.values()]
    value = [found.mean("auc").value for found in panel.values()]
    for place, (pair, found) in enumerate(panel.items()):
        low, high = found.over_users("auc")
        spans = [[max(0.0, value[place] - low)], [max(0.0, high - value[place])]]
        index = looks[pair]
        style = {"color": COLOURS[index % len(COLOURS)], "fmt": MARKERS[index % len(MARKERS)], "markersize": 7}
        axes.errorbar(cost[place], value[place], spans, capsize=3, label=name_within(results, pair, panel), **style)
    front = pareto(cost, value)
    axes.plot([cost[i] for i in front], [value[i] for i in front], color="0.5", linewidth=1, drawstyle="steps-post")
    for best in {found["auc"] for _, setting in panel if "auc" in (found := results.best_possible(setting))}:
        axes.axhline(best, color="0.2", linestyle=":", linewidth=1.5, label="best possible")
    axes.set(xscale="log", xlabel=f"sequence part, million MACs a sample, {form}", ylabel="test AUC")
    axes.set_title(panel_title(results, panel))


def _legend_below(drawing: Drawing, note: str) -> None:
    """One legend for all panels, in the last axes."""
    *panels, below = drawing.axes
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    lines = (len(named) + 1) // 2
    below.get_subplotspec().get_gridspec().set_height_ratios([3.0] * len(panels) + [0.3 + 0.22 * lines])  # type: ignore[union-attr]
    drawing.figure.set_figheight(3.8 * len(panels) + 0.5 + 0.26 * lines)
    below.axis("off")
    below.legend(named.values(), named, loc="upper center", ncols=2, fontsize=9, title=note, title_fontsize=9)


def sequence_macs(found: PairResult, form: str) -> int | None:
    """MACs of the sequence part in one of the forms; the published one is known when costs were measured."""
    if form == PUBLISHED:
        return known_fact(found, "paper_sequence_macs")
    return known_fact(found, "sequence_macs")


def known_fact(found: PairResult, name: str) -> int | None:
    """Of the model: as measured, or else as one of its runs told."""
    told = [found.costs or {}, *((metrics.get("model") or {}) for metrics in found.metrics)]
    return next((facts[name] for facts in told if facts.get(name) is not None), None)


def length_plot(results: Results) -> Drawing | None:
    """Test AUC by history length, a panel for each data set; None when all rows are of one group."""
    if len(results.groups) < 2:
        return None
    panels = results.panels()
    drawing = Drawing(len(panels) + 1)
    for axes, panel in zip(drawing.axes, panels, strict=False):
        looks = look_of(results, panel)
        groups = [group for group in results.groups if any(group in found.by_length for found in panel.values())]
        for pair, found in panel.items():
            values = [float(np.mean(found.by_length.get(group, [np.nan]))) for group in groups]
            index, name = looks[pair], name_within(results, pair, panel)
            axes.plot(range(len(values)), values, marker=MARKERS[index % len(MARKERS)], label=name, **look(index))
        axes.set_xticks(range(len(groups)), [group_name(group) for group in groups], fontsize=9)
        axes.set(xlabel="earlier events of the user", ylabel="test AUC, mean over seeds")
        axes.set_title(panel_title(results, panel))
    _legend_below(drawing, "")
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
