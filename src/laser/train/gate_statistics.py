"""What the silence gates do over an evaluation: shares, recency, silent segments, histogram.

Legend of shape suffixes: E events of samples, packed, oldest first in each sample; B samples; H heads; G segments,
packed; R recency buckets; N histogram bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laser.train.metrics_exchange import gather

RECENCY_EDGES = (0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""First position of each bucket, counted back from the newest event; the last bucket is open."""
BINS = 20
CLOSED, OPEN = 0.05, 0.95
UNIT = 2**20
"""Gates are added as multiples of 2**-20, so that sums are integers and do not depend on order or processes."""
CHUNK_EVENTS = 1 << 20
"""Events looked at in one go: some 200 MB of intermediate values with two heads, whatever the batch holds."""


class GateStatistics:
    """Streaming statistics of gates, on the device of the gates; 64-bit counts, a few hundred numbers."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.heads = self.width = 0
        self.total: Tensor | None = None

    def update(self, gate_EH: Tensor, event_off_B1: Tensor, width: int) -> None:
        """Add the gates of a batch.

        Args:
            gate_EH: gates in [0, 1], any float dtype.
            event_off_B1: int64 offsets of the samples' events.
            width: events of a segment; segments are anchored at the newest event.
        """
        self.heads, self.width = gate_EH.shape[1], width
        for samples, events in sample_chunks(event_off_B1.cpu().numpy(), CHUNK_EVENTS):
            off_B1 = event_off_B1[samples.start : samples.stop + 1]
            self._add(gate_EH[events].detach().float(), off_B1 - off_B1[0], width)

    def _add(self, gate_EH: Tensor, event_off_B1: Tensor, width: int) -> None:
        length_B = event_off_B1.diff()
        sample_E = torch.repeat_interleave(length_B, output_size=len(gate_EH))
        back_E = event_off_B1[sample_E + 1] - 1 - torch.arange(len(gate_EH), device=gate_EH.device)
        parts = (
            _bin_counts(gate_EH),
            torch.stack([(gate_EH < CLOSED).sum(0), (gate_EH > OPEN).sum(0)]),
            _by_recency(gate_EH, back_E),
            _silent_segments(gate_EH, length_B, sample_E, back_E, width),
        )
        added = torch.cat([part.flatten() for part in parts])
        self.total = added if self.total is None else self.total + added

    def compute(self) -> dict[str, Any]:
        """The statistics over all processes of the default group (every rank must call), ready for JSON.

        Keys: ``heads``, ``segment_width``, ``events``; per head ``share_below_0.05``, ``share_above_0.95``, ``mean``
        and ``silent_segments`` (share of segments whose every gate is below 0.05); ``by_recency`` with ``edges``
        (first position of each bucket back from the newest event, the last one open), ``mean`` [bucket][head] and
        ``events`` [bucket]; ``histogram`` with 21 ``edges`` and ``counts`` [head][bin]. Empty buckets are left out at
        the old end and have mean None elsewhere; without any event the shares are None. A network that gave no gates
        has no statistics: the result is empty.
        """
        total = np.zeros(0, np.int64) if self.total is None else self.total.cpu().numpy()
        parts = gather(np.concatenate([np.array([self.heads, self.width]), total]))
        heads, width = np.max([part[:2] for part in parts], axis=0).tolist()
        if heads == 0:
            return {}
        counts = np.sum([part[2:] for part in parts if len(part) > 2] or [_empty(heads)], axis=0)
        return _describe(counts, heads, width)


def sample_chunks(event_off_B1: np.ndarray, events: int) -> Iterator[tuple[slice, slice]]:
    """Cut packed samples into runs of at most ``events`` events, or of one sample that has more by itself.

    Returns:
        Per run the slice of its samples and that of its events; together they are all of them, none without samples.
    """
    first, count = 0, len(event_off_B1) - 1
    while first < count:
        fits = int(np.searchsorted(event_off_B1, event_off_B1[first] + events, side="right")) - 1
        last = max(fits, first + 1)
        yield slice(first, last), slice(int(event_off_B1[first]), int(event_off_B1[last]))
        first = last


def _empty(heads: int) -> np.ndarray:
    buckets = len(RECENCY_EDGES)
    return np.zeros(heads * (BINS + 2 + buckets + 1) + buckets + 1, np.int64)


def _bin_counts(gate_EH: Tensor) -> Tensor:
    """int64 [H, N]."""
    bin_EH = (gate_EH * BINS).long().clamp_(0, BINS - 1)
    head_H = torch.arange(gate_EH.shape[1], device=gate_EH.device)
    flat = (head_H * BINS + bin_EH).flatten()
    return torch.zeros(gate_EH.shape[1] * BINS, dtype=torch.int64, device=flat.device).index_add_(
        0, flat, torch.ones_like(flat)
    )


def _by_recency(gate_EH: Tensor, back_E: Tensor) -> Tensor:
    """Sums in ``UNIT`` [R, H], then events [R]; int64, flat."""
    bucket_E = torch.bucketize(back_E, torch.tensor(RECENCY_EDGES[1:], device=back_E.device), right=True)
    unit_EH = torch.cat([gate_EH.double().mul(UNIT).round().long(), torch.ones_like(back_E)[:, None]], dim=1)
    sum_RH = unit_EH.new_zeros(len(RECENCY_EDGES), unit_EH.shape[1]).index_add_(0, bucket_E, unit_EH)
    return torch.cat([sum_RH[:, :-1].flatten(), sum_RH[:, -1]])


def _silent_segments(gate_EH: Tensor, length_B: Tensor, sample_E: Tensor, back_E: Tensor, width: int) -> Tensor:
    """Segments without a gate at or above ``CLOSED``, per head [H]; then the number of segments."""
    segment_B = -(-length_B // width)
    segment_E = (segment_B.cumsum(0) - segment_B)[sample_E] + back_E // width
    awake_GH = torch.zeros(int(segment_B.sum()), gate_EH.shape[1], dtype=torch.int64, device=gate_EH.device)
    awake_GH.index_add_(0, segment_E, (gate_EH >= CLOSED).long())
    return torch.cat([(awake_GH == 0).sum(0), segment_B.sum()[None]])


def _share(part: np.ndarray, whole: int) -> list[float | None]:
    return [value / whole if whole else None for value in part.tolist()]


def _describe(counts: np.ndarray, heads: int, width: int) -> dict[str, Any]:
    buckets = len(RECENCY_EDGES)
    sizes = [heads * BINS, heads, heads, buckets * heads, buckets, heads, 1]
    bins, closed, opened, sums, events_R, silent, segments = np.split(counts, np.cumsum(sizes)[:-1])
    sum_RH, events = sums.reshape(buckets, heads) / UNIT, int(events_R.sum())
    used = max((index + 1 for index, value in enumerate(events_R.tolist()) if value), default=0)
    mean_R = [_share(row, int(number)) for row, number in zip(sum_RH[:used], events_R[:used], strict=True)]
    return {
        "heads": heads,
        "segment_width": width,
        "events": events,
        "share_below_0.05": _share(closed, events),
        "share_above_0.95": _share(opened, events),
        "mean": _share(sum_RH.sum(0), events),
        "by_recency": {"edges": list(RECENCY_EDGES[:used]), "mean": mean_R, "events": events_R[:used].tolist()},
        "silent_segments": _share(silent, int(segments[0])),
        "histogram": {
            "edges": [index / BINS for index in range(BINS + 1)],
            "counts": bins.reshape(heads, BINS).tolist(),
        },
    }
