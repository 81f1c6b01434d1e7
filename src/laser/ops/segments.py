"""How packed histories fall into segments, tiles and chunks: offsets only, no event is touched.

Two histories of 5 and 2 events, width 2, three samples. Segments are anchored at the newest event, so that the
oldest may be short and a longer past never moves a boundary::

    off_U1         [ 0           5    7 ]
    history 0      [ a | b c | d e ]          3 segments, the oldest with one event
    history 1      [ f g ]                    1 segment
    history_of_B   [ 0, 1, 0 ]
    seg_off_B1     [ 0, 3, 4, 7 ]             segments are packed per sample, oldest first
    event_off_B1   [ 0, 5, 7, 12 ]            so are gates: a shared history has gates for each of its samples
    order_B        [ 0, 2, 1 ]                samples by history
    sample_off_U1  [ 0, 2, 3 ]                where each history's samples begin in order_B

Legend of shape suffixes: B samples; U histories; T events, packed; G segments, packed;
N tiles of events; C segments of one chunk; W segment width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_BYTES = 1 << 22
"""Gathered events of one chunk: small enough to stay in the cache, large enough to hide the cost of the calls."""


@dataclass(frozen=True)
class SegmentLayout:
    """Offsets of segments, gates and samples; all tensors int64 on one device."""

    off_U1: Tensor
    history_of_B: Tensor
    width: int
    seg_off_B1: Tensor
    event_off_B1: Tensor
    order_B: Tensor
    sample_off_U1: Tensor
    num_segments: int
    num_events: int
    most_samples: int
    """Samples of the history that has most of them, at least."""
    tile_events: int
    """Events of a tile, or 0 for a layout without tiles."""
    tile_off_U1: Tensor
    history_of_N: Tensor


def segment_layout(
    off_U1: Tensor, history_of_B: Tensor, width: int, *, num_rows: int = 0, tile_events: int = 0
) -> SegmentLayout:
    """Lay out the segments of every sample, and with ``tile_events`` the tiles of ``num_rows`` events.

    The totals size the outputs: on a GPU reading them is the one synchronisation of segmented attention.
    """
    length_B = off_U1.diff()[history_of_B]
    seg_off_B1 = offsets((length_B + width - 1) // width)
    event_off_B1 = offsets(length_B)
    order_B = torch.argsort(history_of_B, stable=True)
    sample_off_U1 = torch.searchsorted(history_of_B[order_B], torch.arange(len(off_U1), device=off_U1.device))
    if tile_events:
        tile_off_U1, history_of_N = tiles(off_U1, num_rows, tile_events)
    else:
        tile_off_U1 = history_of_N = off_U1.new_empty(0)
    samples_of_U = torch.nn.functional.pad(sample_off_U1.diff(), (0, 1))  # a batch without histories has a maximum, too
    totals = torch.stack([seg_off_B1[-1], event_off_B1[-1], samples_of_U.max()]).tolist()
    return SegmentLayout(
        off_U1,
        history_of_B,
        width,
        seg_off_B1,
        event_off_B1,
        order_B,
        sample_off_U1,
        *totals,
        tile_events,
        tile_off_U1,
        history_of_N,
    )


def offsets(count_B: Tensor) -> Tensor:
    """Where each of consecutive runs begins, and the total: int64 [B + 1]."""
    return torch.nn.functional.pad(count_B.cumsum(0), (1, 0))


def tiles(off_U1: Tensor, num_rows: int, tile: int) -> tuple[Tensor, Tensor]:
    """Cut every history into tiles of at most ``tile`` rows, without reading a size back from the device.

    Returns:
        The first tile of each history [U + 1], and the history of each tile [N], where N is an upper bound by at most
        U: a tile past the last belongs to history U.
    """
    tile_off_U1 = offsets((off_U1.diff() + tile - 1) // tile)
    bound = len(off_U1) - 1 + num_rows // tile
    history_of_N = torch.searchsorted(tile_off_U1, torch.arange(bound, device=off_U1.device), right=True) - 1
    return tile_off_U1, history_of_N


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
    device = layout.seg_off_B1.device
    samples_B = torch.arange(len(layout.history_of_B), device=device)
    sample_G = samples_B.repeat_interleave(layout.seg_off_B1.diff(), output_size=layout.num_segments)
    history_G = layout.history_of_B[sample_G]
    to_newest_G = layout.seg_off_B1[1:][sample_G] - torch.arange(layout.num_segments, device=device)
    first_G = layout.off_U1[1:][history_G] - to_newest_G * layout.width
    start_G = layout.off_U1[history_G]
    # Segments are packed in the order of gates, so a chunk's gates are consecutive: those before its first live row.
    live_rows_G = first_G.add(layout.width) - torch.maximum(first_G, start_G)
    gate_off_G1 = offsets(live_rows_G)
    size = max(1, CHUNK_BYTES // (layout.width * row_bytes))
    within_W = torch.arange(layout.width, device=device)
    bounds = [*range(0, layout.num_segments, size), layout.num_segments]
    gate_bounds = gate_off_G1[torch.tensor(bounds, device=device)].tolist()
    for i in range(len(bounds) - 1):
        part = slice(bounds[i], bounds[i + 1])
        row_CW = first_G[part, None] + within_W
        live_CW = row_CW >= start_G[part, None]
        # A row before the history reads its first event, and its gate is zero.
        row_CW = torch.maximum(row_CW, start_G[part, None])
        yield Chunk(part, slice(gate_bounds[i], gate_bounds[i + 1]), sample_G[part], row_CW, live_CW)
