"""What gates let through of whole segments: silent ones, mass, and how many events share it.

Legend of shape suffixes: G segments; H heads; S thresholds; N histogram bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laser.analysis.gate_file import GateFile
from laser.report.table import Table, percent

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
MASS_BINS = 57
"""So that a mass of 1, which softmax gives every segment, lies within a bin for usual widths."""


@dataclass(frozen=True)
class Segments:
    """Counts over all segments of a file.

    Args:
        kind: of the gates, "sigmoid" or "softmax".
        count: segments.
        thresholds: S values; a segment is silent when all its gates are below.
        silent_SH: share of silent segments by head.
        silent_S: share of segments that are silent in every head.
        mass_edges_N1: edges of the histogram of mass, the sum of a segment's gates, up to the segment width.
        mass_NH: share of segments in each bin.
        mean_mass_H: mean sum of a segment's gates.
        effective_H: mean number of events that share a segment's mass equally: exp of the entropy of gate / sum.
    """

    kind: str
    count: int
    thresholds: tuple[float, ...]
    silent_SH: np.ndarray
    silent_S: np.ndarray
    mass_edges_N1: np.ndarray
    mass_NH: np.ndarray
    mean_mass_H: np.ndarray
    effective_H: np.ndarray

    def table(self) -> Table:
        """Shares of silent segments, a row per threshold."""
        heads = range(self.silent_SH.shape[1])
        head = ("all gates below", *(f"silent segments, head {h}" for h in heads), "silent in all heads")
        rows = tuple(
            (f"{limit:g}", *map(percent, by_head), percent(every))
            for limit, by_head, every in zip(self.thresholds, self.silent_SH, self.silent_S, strict=True)
        )
        return Table(head, rows)

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def segments(gates: GateFile, thresholds: Sequence[float] = THRESHOLDS) -> Segments:
    """Look at every segment of a file once."""
    limit_S = np.asarray(thresholds, np.float32)
    edges = np.linspace(0, gates.segment_width, MASS_BINS + 1)
    count, silent_SH, silent_S = 0, np.zeros((len(limit_S), gates.heads)), np.zeros(len(limit_S))
    bins_NH, mass_H, effective_H = np.zeros((MASS_BINS, gates.heads)), np.zeros(gates.heads), np.zeros(gates.heads)
    for chunk in gates.chunks():
        first_G = chunk.event_off_G1[:-1]
        if not len(first_G):
            continue
        count += len(first_G)
        top_GH = np.maximum.reduceat(chunk.gate_EH, first_G, axis=0)
        silent_SH += (top_GH[None] < limit_S[:, None, None]).sum(1)
        silent_S += (top_GH.max(1)[None] < limit_S[:, None]).sum(1)
        sum_GH = np.add.reduceat(chunk.gate_EH.astype(np.float64), first_G, axis=0)
        mass_H += sum_GH.sum(0)
        effective_H += np.exp(_entropy(chunk.gate_EH, sum_GH, chunk.segment_E, first_G)).sum(0)
        # The last bin also takes what rounding to half precision puts above the width.
        inside_GH = np.minimum(sum_GH, edges[-1])
        bins_NH += np.stack([np.histogram(inside_GH[:, h], edges)[0] for h in range(gates.heads)], axis=1)
    whole = max(count, 1)
    return Segments(
        gates.kind, count, tuple(thresholds), silent_SH / whole, silent_S / whole,
        edges, bins_NH / whole, mass_H / whole, effective_H / whole,
    )  # fmt: skip


def _entropy(gate_EH: np.ndarray, sum_GH: np.ndarray, segment_E: np.ndarray, first_G: np.ndarray) -> np.ndarray:
    """Entropy [G, H] in nats of how a segment's mass is spread over its events; 0 for a segment without mass."""
    share_EH = gate_EH / np.where(sum_GH > 0, sum_GH, 1)[segment_E]
    return np.add.reduceat(-share_EH * np.log(np.where(share_EH > 0, share_EH, 1)), first_G, axis=0)
