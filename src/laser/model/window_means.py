"""Means of a sample's segments over windows of recency: what it did lately, and how that differs from before.

Not in the paper, which takes the maximum over all segments and the newest ones. MultiWindowDIN, whose sequence part is
one such mean of weighted events a window, was ahead of LASER in the paper's form (``docs/study.md``).

Legend of shape suffixes: B samples; G segments, packed; W windows, newest first; D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ends_in_segments(windows: Sequence[int], segment_width: int) -> list[int]:
    """Segments up to the end of each window, counted from the newest.

    Args:
        windows: events of each, newest first.
        segment_width: events a segment.

    Raises:
        ValueError: when a window is not one or more whole segments.
    """
    if any(window < 1 or window % segment_width for window in windows):
        raise ValueError(
            f"segment_windows are {list(windows)}; expected numbers of events that are multiples of segment_width, "
            f"{segment_width}"
        )
    return [sum(windows[: i + 1]) // segment_width for i in range(len(windows))]


def window_means(segment_GD: Tensor, seg_off_B1: Tensor, ends: Sequence[int]) -> Tensor:
    """Mean over the segments of each window, [B, W, D] in float32; zeros where it has none.

    Args:
        segment_GD: segments, oldest first per sample.
        seg_off_B1: int64 offsets of the samples; there may be more segments than they name.
        ends: as of ``ends_in_segments``; one more window holds all that is older.
    """
    samples, count = seg_off_B1.shape[0] - 1, len(ends) + 1
    if segment_GD.shape[0] == 0:
        # A sum of nothing, not plain zeros: a process without events must still hand on gradients.
        return segment_GD.sum(0).float().expand(samples, count, -1)
    segments_B = seg_off_B1.diff()
    up_to_each_end = [segments_B.clamp(max=end) for end in (0, *ends)]
    size_BW = torch.stack([*up_to_each_end, segments_B], dim=1).diff(dim=1)
    surplus_1 = segment_GD.shape[0] - seg_off_B1[-1:]
    lengths = torch.cat([size_BW.flip(1).flatten(), surplus_1])
    # Of consecutive rows, without atomics; unsafe: sizes are not fetched to be checked.
    sums = torch.segment_reduce(segment_GD.float(), "sum", lengths=lengths, axis=0, unsafe=True, initial=0)
    sum_BWD = sums[:-1].view(samples, count, -1).flip(1)
    return sum_BWD / size_BW.clamp(min=1)[..., None]
