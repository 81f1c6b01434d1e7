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
N forward tiles; M backward tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


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


class Counted(NamedTuple):
    """All that is known of a layout before its capacity is; in host memory."""

    off_U1: np.ndarray
    history_of_B: np.ndarray
    samples_U: np.ndarray
    seg_off_B1: np.ndarray
    event_off_B1: np.ndarray
    pair_off_B1: np.ndarray
    forward_U: np.ndarray
    """Tiles of each history."""
    forward_off_U1: np.ndarray
    backward_U: np.ndarray
    backward_off_U1: np.ndarray
    width: int
    tiles: Tiling
    most_samples: int

    @property
    def needed(self) -> Capacity:
        """The smallest capacity."""
        backward, pairs = int(self.backward_off_U1[-1]), int(self.pair_off_B1[-1])
        return Capacity(
            int(self.seg_off_B1[-1]),
            int(self.event_off_B1[-1]),
            int(self.forward_off_U1[-1]),
            backward,
            max(0, pairs - backward * self.tiles.backward_steps),
        )

    def sizes(self, capacity: Capacity | None) -> Sizes:
        """Of the layout.

        Raises:
            ValueError: when the capacity is too small.
        """
        needed = self.needed
        if capacity is None:
            return Sizes(self.width, *needed[:2], self.most_samples, int(self.pair_off_B1[-1]))
        if capacity.cover(needed) != capacity:
            raise ValueError(f"a layout needs {needed}, more than {capacity}")
        num_pairs = capacity.extra_pairs + capacity.backward_tiles * self.tiles.backward_steps
        return Sizes(self.width, *capacity[:2], 1 + self.tiles.shared, num_pairs, spare=1)

    def lengths(self, capacity: Capacity | None) -> list[int]:
        """Of the parts."""
        histories, samples = len(self.off_U1), len(self.history_of_B)
        tiles = (capacity or self.needed)[2:4]
        return [
            *(histories, samples, samples + 1, samples + 1, samples, histories),
            *(histories, tiles[0], histories, tiles[1], samples + 1),
        ]

    def write(self, parts: Sequence[np.ndarray]) -> None:
        """Write the parts, which have ``lengths``."""
        off, history, seg_off, event_off, order, sample_off, *tiles, pair_off = parts
        off[:], history[:], pair_off[:] = self.off_U1, self.history_of_B, self.pair_off_B1
        seg_off[:], event_off[:] = self.seg_off_B1, self.event_off_B1
        _write_order(order, self.history_of_B, self.samples_U)
        sample_off[0] = 0
        self.samples_U.cumsum(out=sample_off[1:])
        last = len(self.samples_U) - 1
        for tile_off, history_of, count, known in (
            (*tiles[:2], self.forward_U, self.forward_off_U1),
            (*tiles[2:], self.backward_U, self.backward_off_U1),
        ):
            tile_off[:], used = known, int(known[-1])
            history_of[:used] = np.repeat(np.arange(len(count)), count)
            history_of[used:] = last


def counted(
    off_U1: np.ndarray, history_of_B: np.ndarray, width: int, tiling: Callable[[bool], Tiling] | None = None
) -> Counted:
    """Count segments, events and tiles; arguments as of ``segment_layout``."""
    length_U = off_U1[1:] - off_U1[:-1]
    samples_U = np.bincount(history_of_B, minlength=len(length_U))
    most_samples = int(samples_U.max(initial=0))
    tiles = tiling(most_samples > 1) if tiling else Tiling()
    forward_U, backward_U = (_pieces(length_U, events) for events in (tiles.forward_events, tiles.backward_events))
    return Counted(
        off_U1,
        history_of_B,
        samples_U,
        offsets(_pieces(length_U, width)[history_of_B]),
        offsets(length_U[history_of_B]),
        offsets(backward_U[history_of_B] * tiles.backward_steps),
        forward_U,
        offsets(forward_U),
        backward_U,
        offsets(backward_U),
        width,
        tiles,
        most_samples,
    )


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
        capacity: sizes that the layout shall have, at least ``Counted.needed``; surplus tiles are given to the last
            history, of which they find no event. Its only sample must be the last.

    Raises:
        ValueError: when the capacity is too small.
    """
    device = device or off_U1.device
    found = counted(off_U1.cpu().numpy(), history_of_B.cpu().numpy(), width, tiling)
    sizes, lengths = found.sizes(capacity), found.lengths(capacity)
    index_I = torch.zeros(index_length(lengths), dtype=torch.int64, pin_memory=device.type == "cuda")
    found.write(index_parts(index_I.numpy(), lengths))
    return SegmentLayout(index_I.to(device, non_blocking=True), lengths, sizes)


def index_length(lengths: Sequence[int]) -> int:
    """Of an index with parts of these lengths."""
    return sum(map(_padded, lengths))


def index_parts(index_I: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """Views of an index in host memory."""
    firsts = accumulate(map(_padded, lengths), initial=0)
    return [index_I[first : first + length] for first, length in zip(firsts, lengths)]


def offsets(count: np.ndarray) -> np.ndarray:
    """Where each of consecutive runs begins, and the total: int64, one longer than ``count``."""
    found = np.zeros(len(count) + 1, np.int64)
    count.cumsum(out=found[1:])
    return found


def _write_order(order_B: np.ndarray, history_of_B: np.ndarray, samples_U: np.ndarray) -> None:
    """Samples by history, those of one history in their order."""
    if len(samples_U) == len(history_of_B) and samples_U.max(initial=0) <= 1:
        order_B[history_of_B] = np.arange(len(order_B))
    else:
        order_B[:] = np.argsort(history_of_B, kind="stable")


def _pieces(length_U: np.ndarray, events: int) -> np.ndarray:
    """Pieces of so many events, the last of which may be smaller."""
    return -(-length_U // events) if events else np.zeros_like(length_U)


def _padded(length: int) -> int:
    """Every part begins at a multiple of 16 bytes: kernels are compiled anew for another alignment."""
    return length + length % 2
