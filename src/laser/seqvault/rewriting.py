"""Copying the live chunks of segments into a new segment, which takes their place in the manifest.

A segment's directory is a list of edits, and "keep" in them counts a user's chunks from the old end. So dead chunks may
be left out of any segment, and adjacent segments may become one, without a look at any other segment: what lies below
a live chunk is live too. Deletions without a chunk of their own must stay while an earlier segment may have the user.

Bytes are copied as they are; a damaged chunk stays one that a read refuses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from laser.seqvault.index import (
    MAX_SLOTS,
    NO_PLACE,
    Index,
    count_of,
    next_older,
    offset_of,
    place_of,
    slot_of,
    words_of,
)
from laser.seqvault.jit import kernel
from laser.seqvault.manifest import SegmentEntry
from laser.seqvault.segment import HEADER_BYTES, Segment
from laser.seqvault.staging import Block

COPY_WORDS = 1 << 19
"""Words copied at a time."""


@kernel
def _live_offsets(
    rows: np.ndarray, num_rows: int, chunks: np.ndarray, wanted: np.ndarray, slots: np.ndarray, offsets: np.ndarray
) -> int:
    """Slot and offset of each chunk in use in the ``wanted`` slots; returns their number, also when room is short."""
    found = 0
    for row in range(num_rows):
        place, record = rows[row].place, rows[row].older
        while place != NO_PLACE:
            slot = slot_of(place)
            if wanted[slot]:
                if found < len(slots):
                    slots[found], offsets[found] = slot, offset_of(place)
                found += 1
            place, _, record = next_older(chunks, record)
    return found


@kernel
def relocate(
    records: np.ndarray,
    used: int,
    first: np.ndarray,
    last: np.ndarray,
    old: np.ndarray,
    new: np.ndarray,
    slot: int,
) -> None:
    """Give ``used`` records, of rows or of chunks, the places that their chunks moved to, in segment ``slot``.

    The chunks that were in slot s are ``first[s]`` to ``last[s]`` of ``old`` (their offsets, ascending) and ``new``.
    """
    for record in range(used):
        place = records[record].place
        if place == NO_PLACE:
            continue
        low, high = first[slot_of(place)], last[slot_of(place)]
        offset, end = offset_of(place), high
        while low < high:
            middle = (low + high) >> 1
            if old[middle] < offset:
                low = middle + 1
            else:
                high = middle
        if low < end and old[low] == offset:
            records[record].place = place_of(slot, new[low], words_of(place), count_of(place))


@dataclass
class Rewrite:
    """A run of adjacent segments on its way into one.

    Args:
        run: their manifest entries.
        segments: the same, open.
        index: where live chunks are.
        first_of_all: whether no segment precedes them.
        breathe: called with the bytes of each part copied; may wait.
    """

    run: Sequence[SegmentEntry]
    segments: Sequence[Segment]
    index: Index
    first_of_all: bool
    breathe: Callable[[int], None]

    def __post_init__(self) -> None:
        self._old: list[np.ndarray] = []
        self._new: list[np.ndarray] = []
        self._end = HEADER_BYTES // 8

    def blocks(self) -> Iterator[Block]:
        """Live chunks and what else of the directories must stay."""
        live = self._live()
        for entry, segment in zip(self.run, self.segments):
            directory = segment.directory()
            chunk = directory["count"] > 0
            stays = chunk & np.isin(directory["offset"], live[entry.slot])
            if not self.first_of_all:
                stays |= ~chunk
            self._old.append(directory["offset"][stays & chunk].astype(np.int64))
            kept = directory[stays]
            ends = np.cumsum(np.where(kept["count"] > 0, kept["words"], 0), dtype=np.int64)
            self._new.append((self._end + ends - kept["words"])[kept["count"] > 0])
            self._end += int(ends[-1]) if len(ends) else 0
            for part in np.split(kept, np.flatnonzero(np.diff(ends // COPY_WORDS)) + 1):
                if len(part):
                    yield _copy(segment, part)
                    self.breathe(8 * int(part["words"][part["count"] > 0].sum()))

    def _live(self) -> dict[int, np.ndarray]:
        index, wanted, room = self.index, np.zeros(MAX_SLOTS, np.bool_), 1024
        wanted[[entry.slot for entry in self.run]] = True
        while True:
            slots, offsets = np.empty(room, np.int64), np.empty(room, np.int64)
            found = _live_offsets(index.rows, int(index.used[0]), index.chunks, wanted, slots, offsets)
            if found <= room:
                slots, offsets = slots[:found], offsets[:found]
                return {entry.slot: offsets[slots == entry.slot] for entry in self.run}
            room = found

    def moved(self, index: Index, slot: int) -> Index:
        """``index``, a later one, with the places in segment ``slot``; the users are the same."""
        first, last, start = np.zeros(MAX_SLOTS, np.int64), np.zeros(MAX_SLOTS, np.int64), 0
        for entry, old in zip(self.run, self._old):
            first[entry.slot], last[entry.slot] = start, start + len(old)
            start += len(old)
        old, new, twin = np.concatenate(self._old), np.concatenate(self._new), index.copy()
        twin.chunks = index.chunks.copy()
        for records, used in ((twin.rows, twin.used[0]), (twin.chunks, twin.used[1])):
            relocate(records, int(used), first, last, old, new, slot)
        for entry in self.run:
            twin.live[slot] += twin.live[entry.slot]
            twin.live[entry.slot] = 0
        return twin


def _copy(segment: Segment, entries: np.ndarray) -> Block:
    """Chunks of a segment, read in runs of neighbours, and their entries with offsets from the first."""
    placed = entries.copy()
    chunk = entries["count"] > 0
    offsets, words = entries["offset"][chunk].astype(np.int64), entries["words"][chunk].astype(np.int64)
    packed = np.empty(int(words.sum()), np.uint64)
    starts = np.cumsum(words) - words
    placed["offset"][chunk] = starts
    breaks = np.flatnonzero(offsets[1:] != offsets[:-1] + words[:-1]) + 1
    for begin, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(offsets)]):
        if end > begin:
            part = packed[starts[begin] : starts[end - 1] + words[end - 1]]
            if os.preadv(segment.file, [part.data], int(offsets[begin]) * 8) < part.nbytes:
                raise ValueError(f"{segment.path} is damaged at offset {offsets[begin] * 8}: it ends within a chunk")
    return packed, placed
