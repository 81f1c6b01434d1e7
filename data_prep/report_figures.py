"""The figures of a data report, each an SVG data address.

Colours are those of Okabe and Ito, which people with any kind of colour vision can tell apart; lines also
differ in style.
"""

from __future__ import annotations

import base64
import datetime
import io
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73")
STYLES = ("-", "--", "-.")
SETTINGS = {"font.size": 11, "svg.hashsalt": "laser-prep", "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 2}
LEAST_SAMPLES = 30
"""Of an interval whose click rate is shown; below it chance decides."""
OverTime = dict[str, list[tuple[float, int, float]]]


def _drawn(draw: Callable[[Axes], None], height: float = 3.4) -> str:
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(5.6, height), layout="constrained")
        draw(figure.subplots())
        buffer = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def over_time(found: OverTime, seconds_per_tick: float, calendar: bool) -> tuple[str, str]:
    """Click rate, and samples, by time, a line for each split; the rate of intervals with few samples is left out.

    Args:
        found: split -> (timestamp, samples, click rate) in order.
        seconds_per_tick: of the timestamps.
        calendar: timestamps count from 1970; otherwise they are positions.
    """
    largest = max((rows for points in found.values() for _, rows, _ in points), default=0)
    least = min(LEAST_SAMPLES, largest // 2)

    def lines(axes: Axes, chosen: OverTime, value: Callable[[int, float], float]) -> None:
        for index, (split, points) in enumerate(chosen.items()):
            times = [moment(time * seconds_per_tick) if calendar else time for time, _, _ in points]
            look = {"color": COLOURS[index], "linestyle": STYLES[index], "marker": "osD"[index], "markersize": 3}
            axes.plot(times, [value(rows, rate) for _, rows, rate in points], label=split, **look)  # pyrefly: ignore
        axes.set(xlabel="time (UTC)" if calendar else "position", ylim=(0, None))
        axes.legend(fontsize=9)
        if calendar:
            places = AutoDateLocator(minticks=3)
            axes.xaxis.set(major_locator=places, major_formatter=ConciseDateFormatter(places))

    def draw_rate(axes: Axes) -> None:
        sure = {split: [point for point in points if point[1] >= least] for split, points in found.items()}
        lines(axes, sure, lambda rows, rate: 100 * rate)
        axes.set(ylabel="click rate (%)")

    def draw_volume(axes: Axes) -> None:
        lines(axes, found, lambda rows, rate: rows)
        axes.set(ylabel="samples per interval")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))

    return _drawn(draw_rate), _drawn(draw_volume)


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
        bars = axes.barh([name for name, _ in ordered], [size / 1e6 for _, size in ordered], color=COLOURS[0])
        axes.bar_label(bars, [_megabytes(size) for _, size in ordered], padding=3, fontsize=9)
        axes.set(xlabel="size on disk (MB)")
        axes.margins(x=0.15)
        axes.grid(axis="y", visible=False)

    return _drawn(draw, height=2.8)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}" if size >= 1e5 else f"{size / 1e6:.3f}"


def drifts(names: list[str], distances: dict[str, list[float]], chance: list[float]) -> str:
    """Distance of validation and test from train, beside what chance brings."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(names))
        for index, (label, values) in enumerate((distances | {"chance (halves of train)": chance}).items()):
            colour = COLOURS[index] if index < len(distances) else "0.6"
            axes.barh(places + 0.27 * (index - 1), 100 * np.array(values), 0.25, label=label, color=colour)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set(xlabel="total variation distance from train (%)")
        axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.legend(fontsize=9)
        axes.grid(axis="y", visible=False)

    return _drawn(draw, height=1.6 + 0.5 * len(names))
