"""Segments of a layout in chunks that stay in the cache, for implementations on a CPU.

Legend of shape suffixes: B samples; U histories; G segments, packed; C segments of one chunk; W segment width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from laser.ops.segments import SegmentLayout

CHUNK_BYTES = 1 << 22
"""Gathered events of one chunk: small enough to stay in the cache, large enough to hide the cost of the calls."""


@dataclass(frozen=True)
class Chunk:
    """Some consecutive segments: which rows of x, which sample, and which gates."""

    segments: slice
    gates: slice
    sample_C: Tensor
    row_CW: Tensor
    live_CW: Tensor


def chunks(layout: SegmentLayout, row_bytes: int) -> Iterator[Chunk]:
    """Cut the segments of all samples into chunks."""
    parts, width = layout.parts, layout.size.width
    num_segments = int(parts.seg_off_B1[-1]) if layout.size.spare else layout.size.num_segments
    device = layout.index_I.device
    samples_B = torch.arange(len(parts.history_of_B), device=device)
    sample_G = samples_B.repeat_interleave(parts.seg_off_B1.diff(), output_size=num_segments)
    history_G = parts.history_of_B[sample_G]
    to_newest_G = parts.seg_off_B1[1:][sample_G] - torch.arange(num_segments, device=device)
    first_G = parts.off_U1[1:][history_G] - to_newest_G * width
    start_G = parts.off_U1[history_G]
    # Segments are packed in the order of gates, so a chunk's gates are consecutive: those before its first live row.
    live_rows_G = first_G.add(width) - torch.maximum(first_G, start_G)
    gate_off_G1 = torch.nn.functional.pad(live_rows_G.cumsum(0), (1, 0))
    size = max(1, CHUNK_BYTES // (width * row_bytes))
    within_W = torch.arange(width, device=device)
    bounds = [*range(0, num_segments, size), num_segments]
    gate_bounds = gate_off_G1[torch.tensor(bounds, device=device)].tolist()
    for i in range(len(bounds) - 1):
        part = slice(bounds[i], bounds[i + 1])
        row_CW = first_G[part, None] + within_W
        live_CW = row_CW >= start_G[part, None]
        # A row before the history reads its first event, and its gate is zero.
        row_CW = torch.maximum(row_CW, start_G[part, None])
        yield Chunk(part, slice(gate_bounds[i], gate_bounds[i + 1]), sample_G[part], row_CW, live_CW)
