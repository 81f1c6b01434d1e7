"""The figures of a report, each as a data address that an ``img`` can hold.

Colours are those of Okabe and Ito, which people with any kind of colour vision can tell apart; lines also differ in
style. Legend of shape suffixes: N rows; C calibration bins; H heads; R recency buckets.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from laser.report.scores import Ranking

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
CURVE_POINTS = 300
CALIBRATION_BINS = 12
SETTINGS = {"font.size": 11, "svg.hashsalt": "laser", "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 2}


class Drawing:
    """Axes one below the other, so that a phone shows them in full width; closed to an SVG data address.

    Args:
        panels: number of axes.
    """

    def __init__(self, panels: int = 1) -> None:
        with mpl.rc_context(SETTINGS):
            self.figure = Figure(figsize=(5.4, 3.8 * panels), layout="constrained")
            self.axes: list[Axes] = list(np.atleast_1d(self.figure.subplots(panels, 1)))  # pyrefly: ignore

    def svg(self) -> bytes:
        """The drawing as an SVG file; the same drawing gives the same bytes."""
        buffer = io.BytesIO()
        with mpl.rc_context(SETTINGS):
            FigureCanvasSVG(self.figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
        return buffer.getvalue()

    def address(self) -> str:
        """The drawing as ``data:image/svg+xml;base64,…``."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg()).decode()


def look(index: int) -> dict[str, Any]:
    """Colour and style of the line with this number."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)]}


def learning_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> str | None:
    """Losses and areas under the curve by step; None when ``curves`` has neither."""
    losses = [name for name in curves if name.endswith("loss") and not name.startswith("test")]
    areas = [name for name in curves if name.endswith("auc") and not name.startswith("test")]
    panels = [(names, title) for names, title in ((losses, "loss (nats per sample)"), (areas, "AUC, GAUC")) if names]
    if not panels:
        return None
    drawing = Drawing(len(panels))
    for axes, (shown, title) in zip(drawing.axes, panels, strict=True):
        for index, name in enumerate(shown):
            step, value = curves[name]
            axes.plot(step, value, marker="o" if len(step) < 40 else None, markersize=4, label=name, **look(index))
        axes.set(xlabel="optimizer steps", ylabel=title)
        axes.legend()
    return drawing.address()


def roc(scorings: dict[str, np.ndarray], label_N: np.ndarray) -> str:
    """ROC curves of named scorings of the same rows."""
    drawing = Drawing()
    axes = drawing.axes[0]
    for index, (name, score_N) in enumerate(scorings.items()):
        ranking = Ranking(score_N, label_N)
        false_rate, true_rate = ranking.curve()
        kept = np.unique(np.linspace(0, len(false_rate) - 1, CURVE_POINTS).astype(int))
        axes.plot(false_rate[kept], true_rate[kept], label=f"{name}, AUC {ranking.auc():.4f}", **look(index))
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.legend(loc="lower right", fontsize=9)
    return drawing.address()


def calibration(model: str, probability_N: np.ndarray, label_N: np.ndarray) -> str:
    """Observed click rate against mean probability in bins of equally many rows, and how probabilities spread."""
    drawing = Drawing(2)
    edges = np.quantile(probability_N, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1])
    bin_N = np.searchsorted(edges, probability_N, side="right")
    rows_C = np.bincount(bin_N, minlength=CALIBRATION_BINS)
    used_C = rows_C > 0
    rows_C = rows_C[used_C]
    predicted_C = np.bincount(bin_N, probability_N, CALIBRATION_BINS)[used_C] / rows_C
    observed_C = np.bincount(bin_N, label_N, CALIBRATION_BINS)[used_C] / rows_C
    low_C, high_C = wilson(observed_C, rows_C)
    reliability, spread = drawing.axes
    spans = np.stack([observed_C - low_C, high_C - observed_C]).clip(0)
    reliability.errorbar(predicted_C, observed_C, spans, fmt="o", color=COLOURS[0], capsize=3, label=f"{model}, 95 %")
    reliability.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfect")
    reliability.set(xlabel="predicted click probability", ylabel="observed click rate", xlim=(0, 1), ylim=(0, 1))
    reliability.legend(loc="upper left")
    bins = np.linspace(0, 1, 41).tolist()
    for index, value in enumerate((0, 1)):
        spread.hist(
            probability_N[label_N == value], bins, histtype="step", label=f"label {value}", lw=2, **_edge(index)
        )
    spread.set(xlabel="predicted click probability", ylabel="rows")
    spread.legend()
    return drawing.address()


def _edge(index: int) -> dict[str, Any]:
    return {"edgecolor": COLOURS[index], "linestyle": STYLES[index]}


def wilson(rate_C: np.ndarray, rows_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the 95 % score interval of a share (Wilson, 1927), as if rows were independent."""
    z2 = 1.959964**2
    centre_C = (rate_C + z2 / (2 * rows_C)) / (1 + z2 / rows_C)
    half_C = np.sqrt(z2 * (rate_C * (1 - rate_C) / rows_C + z2 / (4 * rows_C**2))) / (1 + z2 / rows_C)
    return centre_C - half_C, centre_C + half_C


def by_length(model: str, buckets: Sequence[dict[str, Any]], reference: str | None) -> str:
    """AUC and GAUC per bucket of history length, of the model and of a reference."""
    drawing = Drawing(2)
    position = np.arange(len(buckets))
    for axes, metric in zip(drawing.axes, ("auc", "gauc"), strict=True):
        values = [bucket[metric] for bucket in buckets]
        axes.plot(position, values, marker="o", label=model, **look(0))
        if reference is not None:
            values = [bucket[f"reference_{metric}"] for bucket in buckets]
            axes.plot(position, values, marker="s", label=reference, **look(1))
        axes.set_xticks(position, [bucket["events"] for bucket in buckets], rotation=45, ha="right")
        axes.set(xlabel="history length (events)", ylabel=metric.upper())
        axes.legend(fontsize=9)
    return drawing.address()


def gates(statistics: dict[str, Any]) -> str | None:
    """Mean gate by recency and the spread of gates, a line for each head; None when there were no events."""
    if not statistics.get("events"):
        return None
    drawing = Drawing(2)
    recency, spread = drawing.axes
    edges = statistics["by_recency"]["edges"]
    mean_RH = np.array(statistics["by_recency"]["mean"], float)
    labels = [*bucket_names(edges[:-1], edges[1:]), f"≥ {edges[-1]}"]
    bounds = np.array(statistics["histogram"]["edges"])
    for head in range(statistics["heads"]):
        recency.plot(np.arange(len(edges)), mean_RH[:, head], marker="o", label=f"head {head}", **look(head))
        counts = np.array(statistics["histogram"]["counts"][head])
        spread.stairs(100 * counts / statistics["events"], bounds, label=f"head {head}", lw=2, **_edge(head % 4))
    recency.set_xticks(np.arange(len(edges)), labels, rotation=45, ha="right")
    recency.set(xlabel="position from the newest event", ylabel="mean gate", ylim=(0, 1))
    spread.set(xlabel="gate", ylabel="share of events (%)", yscale="log")
    for axes in drawing.axes:
        axes.legend(fontsize=9)
    return drawing.address()


def bucket_names(first: Sequence[int], after: Sequence[int]) -> list[str]:
    """``0``, ``1–9``, ``10–19`` … of half-open integer buckets."""
    return [f"{a}" if b == a + 1 else f"{a}–{b - 1}" for a, b in zip(first, after, strict=True)]  # noqa: RUF001
