"""The figures of a data report, each an SVG data address.

Colours are those of Okabe and Ito, which people with any kind of colour vision can tell apart; lines also
differ in style.
"""

from __future__ import annotations

import base64
import datetime
import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73")
STYLES = ("-", "--", "-.")
SETTINGS = {"font.size": 11, "svg.hashsalt": "laser-prep", "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 2}
OverTime = dict[str, list[tuple[float, int, float]]]


def _drawn(draw: Any, panels: int = 1, height: float = 3.4) -> str:
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(5.6, height * panels), layout="constrained")
        axes: list[Axes] = list(np.atleast_1d(figure.subplots(panels, 1)))  # pyrefly: ignore
        draw(*axes)
        buffer = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def over_time(found: OverTime, seconds_per_tick: float, calendar: bool) -> str:
    """Click rate and samples by time, a line for each split.

    Args:
        found: split -> (timestamp, samples, click rate) in order.
        seconds_per_tick: of the timestamps.
        calendar: timestamps count from 1970; otherwise they are positions.
    """

    def draw(rate: Axes, volume: Axes) -> None:
        for index, (split, points) in enumerate(found.items()):
            times = [moment(point[0] * seconds_per_tick) if calendar else point[0] for point in points]
            look = {"color": COLOURS[index], "linestyle": STYLES[index], "marker": "osD"[index], "markersize": 3}
            rate.plot(times, [100 * point[2] for point in points], label=split, **look)  # pyrefly: ignore
            volume.plot(times, [point[1] for point in points], label=split, **look)  # pyrefly: ignore
        rate.set(ylabel="click rate (%)")
        volume.set(ylabel="samples per interval", ylim=(0, None), xlabel="time (UTC)" if calendar else "position")
        for axes in (rate, volume):
            axes.legend(fontsize=9)
            axes.tick_params(axis="x", rotation=30)
            for tick in axes.get_xticklabels():
                tick.set_horizontalalignment("right")

    return _drawn(draw, 2, 3.0)


def moment(seconds: float) -> datetime.datetime:
    """The date and time (UTC) so many seconds after 1970 began."""
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)


def by_value(name: str, found: list[tuple[str, int, float]]) -> str:
    """Click rate of each value of a feature."""

    def draw(axes: Axes) -> None:
        axes.bar(range(len(found)), [100 * rate for _, _, rate in found], color=COLOURS[0])
        labels = [value if len(value) <= 18 else value[:17] + "…" for value, _, _ in found]
        axes.set_xticks(range(len(found)), labels, rotation=90 if len(found) > 6 else 0)
        axes.set(xlabel=name, ylabel="click rate (%)")
        axes.grid(axis="x", visible=False)

    return _drawn(draw)


def history_lengths(counts: dict[str, list[int]]) -> str:
    """Share of samples by history length in powers of two, a line for each split."""

    def draw(axes: Axes) -> None:
        longest = max(len(values) for values in counts.values())
        for index, (split, values) in enumerate(counts.items()):
            share = 100 * np.array(values) / max(1, sum(values))
            places = np.arange(len(values))
            axes.plot(places, share, marker="o", label=split, color=COLOURS[index], linestyle=STYLES[index])
        axes.set_xticks(range(longest), [power_name(place) for place in range(longest)], rotation=60, ha="right")
        axes.set(xlabel="events before the sample", ylabel="share of the split's samples (%)", ylim=(0, None))
        axes.legend(fontsize=9)

    return _drawn(draw, height=3.8)


def power_name(place: int) -> str:
    """``0``, ``1``, ``2–3``, ``4–7`` … for the places of a distribution in powers of two."""
    low, high = 2 ** (place - 1), 2**place - 1
    return str(place) if place < 2 else f"{low:,}–{high:,}"  # noqa: RUF001


def disk(parts: dict[str, int]) -> str:
    """Megabytes by part, the largest on top."""
    ordered = sorted(parts.items(), key=lambda part: part[1])

    def draw(axes: Axes) -> None:
        axes.barh([name for name, _ in ordered], [size / 1e6 for _, size in ordered], color=COLOURS[0])
        axes.set(xlabel="size on disk (MB)")
        axes.grid(axis="y", visible=False)

    return _drawn(draw, height=2.8)


def drifts(names: list[str], distances: dict[str, list[float]], chance: list[float]) -> str:
    """Distance of validation and test from train, beside what chance brings."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(names))
        for index, (label, values) in enumerate((distances | {"chance (halves of train)": chance}).items()):
            colour = COLOURS[index] if index < len(distances) else "0.6"
            axes.barh(places + 0.27 * (1 - index), 100 * np.array(values), 0.25, label=label, color=colour)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set(xlabel="total variation distance from train (%)")
        axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.legend(fontsize=9)
        axes.grid(axis="y", visible=False)

    return _drawn(draw, height=1.6 + 0.5 * len(names))
