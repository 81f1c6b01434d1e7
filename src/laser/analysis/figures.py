"""Figures of gates, for notebooks and talks: every axis labelled with its unit, colours for any kind of colour vision.

Every function returns a matplotlib figure that nobody else holds; a notebook shows it, ``savefig`` writes it.

Legend of shape suffixes: E events; H heads; R groups; N histogram bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from laser.analysis.faithfulness import CHOICES, Effect
from laser.analysis.gate_file import GatedSamples
from laser.analysis.grouping import Grouping
from laser.analysis.segments import Segments
from laser.analysis.silence import Silence
from laser.analysis.softmax import Agreement
from laser.report.plots import COLOURS, STYLES, look

SETTINGS = {"font.size": 11, "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 2, "axes.axisbelow": True}
HATCHES = ("", "//", "..", "xx")
MARKS = ("o", "s", "^", "D")


def _axes(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
        return figure, list(np.atleast_1d(figure.subplots(1, columns)))  # pyrefly: ignore


def silence_by_group(found: Silence) -> Figure:
    """Share of silenced events by group and head, and what each group contributes beside its share of the events."""
    figure, (left, right) = _axes(10, 4, 2)
    heads, place_R = found.gates_RH.shape[1], np.arange(len(found.names))
    width = 0.8 / heads
    for head in range(heads):
        at_R = place_R + (head - (heads - 1) / 2) * width
        style = {"color": COLOURS[head], "hatch": HATCHES[head % 4], "edgecolor": "white", "label": f"head {head}"}
        left.bar(at_R, 100 * found.share_RH[:, head], width, **style)
        right.bar(at_R, 100 * found.contribution_RH[:, head], width, **style)
    right.plot(place_R, 100 * found.population_R, "k_", markersize=22, label="share of the events")
    names = [f"{name}\n{_short(n)}" for name, n in zip(found.names, found.events_R.tolist(), strict=True)]
    many = len(names) * max(map(len, found.names)) > 60
    for axes in (left, right):
        axes.set_xticks(place_R, names, fontsize=9, rotation=45 if many else 0, ha="right" if many else "center")
        axes.set_xlabel(f"{found.title} (with number of events)")
        axes.legend(fontsize=9)
    left.set(ylabel=f"events with a gate below {found.threshold:g} (%)", title="silenced")
    right.set(ylabel="share of the sum of gates (%)", title="let through")
    for axes, most in (
        (left, found.share_RH.max()),
        (right, max(found.contribution_RH.max(), found.population_R.max())),
    ):
        axes.set_ylim(0, max(125 * float(most), 1))
    return figure


def silent_segments(found: Mapping[str, Segments]) -> Figure:
    """Share of whole segments that are silent, by threshold; one panel per named file."""
    figure, panels = _axes(5 * len(found), 3.8, len(found))
    for axes, (name, segments) in zip(panels, found.items(), strict=True):
        for head in range(segments.silent_SH.shape[1]):
            style = look(head) | {"marker": MARKS[head % 4]}
            axes.plot(segments.thresholds, 100 * segments.silent_SH[:, head], label=f"head {head}", **style)
        axes.plot(segments.thresholds, 100 * segments.silent_S, "k:", marker="x", label="every head")
        axes.set(xscale="log", xlabel="threshold", ylim=(-3, 103), title=f"{name}: {_short(segments.count)} segments")
        axes.set_xticks(segments.thresholds, [f"{limit:g}" for limit in segments.thresholds])
        axes.minorticks_off()
        axes.legend(fontsize=9)
    panels[0].set_ylabel("segments with all gates below\nthe threshold (%)")
    return figure


def segment_mass(found: Mapping[str, Segments]) -> Figure:
    """How much each segment lets through: the sum of its gates; one panel per named file."""
    figure, panels = _axes(5 * len(found), 3.8, len(found))
    ends = [s.mass_edges_N1[1:][(s.mass_NH > 1e-3).any(axis=1)] for s in found.values()]
    for axes, (name, segments) in zip(panels, found.items(), strict=True):
        heads = segments.mass_NH.shape[1]
        for head in range(heads):
            label = f"head {head}: mean {segments.mean_mass_H[head]:.2f}"
            style = {"edgecolor": COLOURS[head], "linestyle": STYLES[head % 4], "lw": 2}
            axes.stairs(100 * segments.mass_NH[:, head], segments.mass_edges_N1, label=label, **style)
        axes.set(xlabel="sum of a segment's gates", ylim=(0, None), title=name)
        axes.set_xlim(0, max(float(end.max(initial=1)) for end in ends))
        axes.legend(fontsize=9)
    panels[0].set_ylabel("segments (%)")
    return figure


def gates_against_weights(found: Agreement) -> Figure:
    """Gates beside softmax weights of the same events, a panel per head; colour is the number of events."""
    heads = len(found.events_HNN)
    figure, panels = _axes(5 * heads, 4.2, heads)
    most = max(int(found.events_HNN.max()), 2)
    for head, axes in enumerate(panels):
        events_NN = np.ma.masked_equal(found.events_HNN[head].T, 0)
        edges = found.edges_N1
        drawn = axes.pcolormesh(edges, edges, events_NN, cmap="cividis", norm=LogNorm(1, most), rasterized=True)
        title = f"head {head}: correlation {found.correlation_H[head]:.2f},\n"
        title += f"of ranks within a segment {found.rank_correlation_H[head]:.2f}"
        axes.set(xlabel="sigmoid gate", title=title, xlim=(0, 1), ylim=(0, 1))
        axes.title.set_fontsize(11)
    panels[0].set_ylabel(found.title)
    figure.colorbar(drawn, ax=panels, label="events")
    return figure


def effects(found: Mapping[str, Sequence[Effect]]) -> Figure:
    """Mean change of the logit by what was masked, with 95 % intervals; one panel per named setting."""
    figure, panels = _axes(max(5.0 * len(found), 6), 3.8, len(found))
    for axes, (name, effects) in zip(panels, found.items(), strict=True):
        for place, effect in enumerate(effects):
            low, high = effect.change_interval
            spans = [[max(effect.change - low, 0)], [max(high - effect.change, 0)]]
            colour = COLOURS[list(CHOICES).index(effect.choice)]
            axes.barh(place, effect.change, color=colour, xerr=spans, capsize=4, ecolor="0.2")
        axes.set_yticks(range(len(effects)), [CHOICES[effect.choice] for effect in effects])
        axes.invert_yaxis()
        axes.set(xlabel="mean |change of the logit|, 95 % over users", title=name)
    return figure


def effects_by_share(found: Mapping[float, Sequence[Effect]]) -> Figure:
    """Mean change of the logit by the share of each history that is masked, with 95 % intervals."""
    figure, (axes,) = _axes(6.5, 4)
    shares = 100 * np.array(list(found))
    for index, choice in enumerate(CHOICES):
        chosen = [next(e for e in effects if e.choice == choice) for effects in found.values()]
        style = look(index) | {"marker": MARKS[index % 4]}
        label = CHOICES[choice].replace("silenced", "smallest gates").replace("most open", "largest gates")
        axes.plot(shares, [e.change for e in chosen], label=label.removeprefix("as many "), **style)
        low, high = zip(*(e.change_interval for e in chosen))
        axes.fill_between(shares, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="events masked in each history (%)", ylabel="mean |change of the logit|", ylim=(0, None))
    axes.legend(fontsize=9, title="masked first")
    return figure


def timeline(sample: GatedSamples, grouping: Grouping, newest: int = 60) -> Figure:
    """The newest events of one sample, a bar per event and head; colour is the group, lines are segment borders."""
    heads, end = sample.gate_EH.shape[1], int(sample.event_off_B1[1])
    figure, (axes,) = _axes(11, 1.2 + 1.9 * heads)
    first = max(0, end - newest)
    rank_E, group_E = sample.rank_E[first:end], grouping.group(sample)[first:end]
    top = float(sample.gate_EH[first:end].max(initial=0.01))
    base_H = [1.15 * top * (heads - 1 - row) for row in range(heads)]
    for row, base in enumerate(base_H):
        for group in np.unique(group_E):
            at = group_E == group
            label = grouping.names[group] if row == 0 else None
            style = {"color": COLOURS[group % len(COLOURS)], "hatch": HATCHES[group % 4], "edgecolor": "white"}
            axes.bar(-rank_E[at] - 1, sample.gate_EH[first:end][at, row], 0.85, bottom=base, label=label, **style)
        axes.axhline(base, color="0.3", linewidth=1)
    for border in sample.event_off_G1[(sample.event_off_G1 >= first) & (sample.event_off_G1 <= end)]:
        axes.axvline(-(end - border) - 0.5, color="0.5", linewidth=1, linestyle=":")
    ticks = [(base + x * top, f"head {row}: {x * top:.2f}") for row, base in enumerate(base_H) for x in (0, 0.5, 1)]
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=9)
    axes.set(xlabel="event, counted back from the sample (dotted: borders of segments)", ylabel="gate")
    axes.set(xlim=(-len(rank_E) - 0.5, -0.5), ylim=(0, 1.15 * top * heads))
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper center", ncols=4, fontsize=9, title=grouping.title)
    return figure


def _short(count: int) -> str:
    """``12,345`` as ``12 k``."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 10 * size:
            return f"{count / size:.0f} {unit}"
    return f"{count:,}"
