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

All of it is computed on the host and travels to a GPU in one copy: kernels for it would be some twenty launches, and
the host would have to wait for the sizes of the outputs.

Legend of shape suffixes: B samples; U histories; T events, packed; G segments, packed; I parts, one after another;
N forward tiles; M backward tiles; C segments of one chunk; W segment width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK_BYTES = 1 << 22
"""Gathered events of one chunk: small enough to stay in the cache, large enough to hide the cost of the calls."""


class Tiling(NamedTuple):
    """How kernels cut histories among programs; 0 events where nothing is cut."""

    forward_events: int = 0
    backward_events: int = 0
    backward_steps: int = 1
    """Programs of a backward tile."""
    shared: bool = False
    """Whether histories may have several samples."""


class Sizes(NamedTuple):
    """Numbers of a layout that the host must know."""

    width: int
    num_segments: int
    num_events: int
    most_samples: int
    """Samples of the history that has most of them; with a ``Capacity`` 2 stands for more."""
    num_pairs: int
    """Pairs of a sample and a backward program of its history."""
    spare: int = 0
    """Whether there may be rows of segments that belong to no sample, because sizes are those of a ``Capacity``."""


class Capacity(NamedTuple):
    """Sizes that a layout is brought to, so that batches of different sizes look alike to a GPU's recorded kernels."""

    num_segments: int = 0
    num_events: int = 0
    forward_tiles: int = 0
    backward_tiles: int = 0
    extra_pairs: int = 0
    """Pairs beyond one for each program of a backward tile; histories with several samples have them."""

    def cover(self, other: Capacity) -> Capacity:
        """Enough for both."""
        return Capacity(*map(max, self, other))


class Parts(NamedTuple):
    """Offsets and indices of a layout, int64."""

    off_U1: Tensor
    history_of_B: Tensor
    seg_off_B1: Tensor
    event_off_B1: Tensor
    order_B: Tensor
    sample_off_U1: Tensor
    forward_tile_off_U1: Tensor
    """The first tile of each history, and their number."""
    forward_history_of_N: Tensor
    """The history of each tile."""
    backward_tile_off_U1: Tensor
    backward_history_of_M: Tensor
    pair_off_B1: Tensor
    """The first (sample, backward program) pair of each sample, and their number."""


@dataclass(frozen=True)
class SegmentLayout:
    """The segments of every sample, and the tiles of every history.

    Flat, because an operator takes tensors and numbers only.
    """

    index_I: Tensor
    """All parts, one after another, on the device of the events."""
    lengths: Sequence[int]
    """Of the parts."""
    sizes: Sequence[int]
    """In the order of ``Sizes``."""

    @property
    def parts(self) -> Parts:
        """Views of the index."""
        padded = self.index_I.split([_padded(length) for length in self.lengths])
        return Parts(*(part[:length] for part, length in zip(padded, self.lengths, strict=True)))

    @property
    def size(self) -> Sizes:
        """Sizes by name."""
        return Sizes(*self.sizes)


@torch.compiler.disable
def segment_layout(
    off_U1: Tensor,
    history_of_B: Tensor,
    width: int,
    tiling: Callable[[bool], Tiling] | None = None,
    device: torch.device | None = None,
    capacity: Capacity | None = None,
) -> SegmentLayout:
    """Lay out the segments of every sample.

    Args:
        off_U1: int64 [U + 1] offsets of the histories. On the host; from a GPU they are fetched first, for which the
            host must wait.
        history_of_B: int64 [B], the history of each sample; likewise.
        width: events a segment.
        tiling: gives the kernels' tiles, told whether any history has several samples. Default: no tiles.
        device: where the layout is needed; ``None``: where ``off_U1`` is.
        capacity: sizes that the layout shall have, at least ``capacity_needed``; surplus tiles are given to the last
            history, of which they find no event. Its only sample must be the last.

    Raises:
        ValueError: when the capacity is too small.
    """
    off, history = off_U1.cpu().numpy(), history_of_B.cpu().numpy()
    length = np.diff(off)
    samples = np.bincount(history, minlength=len(length))
    most_samples = int(samples.max(initial=0))
    tiles = tiling(most_samples > 1) if tiling else Tiling()
    steps = tiles.backward_steps
    forward, backward = _tiles(length, tiles.forward_events), _tiles(length, tiles.backward_events)
    pair_off = offsets(np.diff(backward[0])[history] * steps)
    seg_off, event_off = offsets(-(-length // width)[history]), offsets(length[history])
    order = _order(history, samples)
    sizes = Sizes(width, int(seg_off[-1]), int(event_off[-1]), most_samples, int(pair_off[-1]))
    if capacity is not None:
        needed = Capacity(*sizes[1:3], len(forward[1]), len(backward[1]), sizes.num_pairs - len(backward[1]) * steps)
        if capacity.cover(needed) != capacity:
            raise ValueError(f"a layout needs {needed}, more than {capacity}")
        num_pairs = capacity.extra_pairs + capacity.backward_tiles * steps
        sizes = Sizes(width, capacity.num_segments, capacity.num_events, 1 + tiles.shared, num_pairs, spare=1)
        forward, backward = (
            (tile_off, np.append(tile, np.full(count - len(tile), len(length) - 1)))
            for (tile_off, tile), count in ((forward, capacity.forward_tiles), (backward, capacity.backward_tiles))
        )
    parts = [off, history, seg_off, event_off, order, offsets(samples), *forward, *backward, pair_off]
    return SegmentLayout(_on(device or off_U1.device, parts), [len(part) for part in parts], sizes)


def capacity_needed(off_U1: Tensor, history_of_B: Tensor, width: int, tiles: Tiling) -> Capacity:
    """The smallest capacity of a layout with these tiles; offsets and histories on the host."""
    off, history = off_U1.numpy(), history_of_B.numpy()
    length = np.diff(off)
    forward_U, backward_U = (
        -(-length // events) if events else np.zeros_like(length)
        for events in (tiles.forward_events, tiles.backward_events)
    )
    extra_pairs = (int(backward_U[history].sum()) - int(backward_U.sum())) * tiles.backward_steps
    segments, events = int((-(-length // width)[history]).sum()), int(length[history].sum())
    return Capacity(segments, events, int(forward_U.sum()), int(backward_U.sum()), max(0, extra_pairs))


def offsets(count: np.ndarray) -> np.ndarray:
    """Where each of consecutive runs begins, and the total: int64, one longer than ``count``."""
    found = np.zeros(len(count) + 1, np.int64)
    np.cumsum(count, out=found[1:])
    return found


def _order(history_of_B: np.ndarray, samples_U: np.ndarray) -> np.ndarray:
    """Samples by history, those of one history in their order."""
    if len(samples_U) == len(history_of_B) and samples_U.max(initial=0) <= 1:
        order = np.empty_like(history_of_B)
        order[history_of_B] = np.arange(len(order))
        return order
    return np.argsort(history_of_B, kind="stable")


def _tiles(length: np.ndarray, events: int) -> tuple[np.ndarray, np.ndarray]:
    """The first tile of each history, and the history of each tile."""
    count = -(-length // events) if events else np.zeros_like(length)
    return offsets(count), np.repeat(np.arange(len(length)), count)


def _padded(length: int) -> int:
    """Every part begins at a multiple of 16 bytes: kernels are compiled anew for another alignment."""
    return length + length % 2


def _on(device: torch.device, parts: list[np.ndarray]) -> Tensor:
    """The parts as one tensor; to a GPU without waiting for the copy."""
    index_I = torch.zeros(sum(_padded(len(part)) for part in parts), dtype=torch.int64)
    if device.type == "cuda":
        index_I = index_I.pin_memory()
    first, host = 0, index_I.numpy()
    for part in parts:
        host[first : first + len(part)] = part
        first += _padded(len(part))
    return index_I.to(device, non_blocking=True)


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
