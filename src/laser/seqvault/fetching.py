"""Bringing chunks into memory: of each the header and the first columns, as many as are asked for, all of it checked.

How long the areas of the first columns are stands in a chunk's header, which is not known before it is read. So a read
asks for the share of the chunk that sufficed for earlier reads of as many columns, and reads the rest of the few chunks
that need more.

Legend of shape suffixes: Q distinct chunks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laser.seqvault.bits import HEADER_WORDS, area_words, head_of, prefix_words
from laser.seqvault.checksum import checksum_of
from laser.seqvault.cold import thaw
from laser.seqvault.derived import Tables
from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.index import count_of, offset_of, slot_of, words_of
from laser.seqvault.jit import WILLNEED, fadvise, kernel, pread
from laser.seqvault.segment import Segment

SPARE_WORDS = 2
"""Unpacking may look this far past an area."""
LEARNED_FROM = 16
"""Chunks that tell enough of how large a share the first columns take."""
SUFFICES = 0.97
"""Part of the chunks for which that share is to be enough."""
DAMAGED, SHORT = 0, 1


class SegmentFiles:
    """Open segments by slot, their file numbers as the kernels want them, and what their codes stand for."""

    def __init__(
        self,
        segments: dict[int, Segment],
        ids: Dictionaries,
        tables: Tables | None = None,
        shares: np.ndarray | None = None,
    ) -> None:
        self.segments, self.ids = segments, ids
        self.tables = Tables(ids.folder, ids.layout, {}) if tables is None else tables
        slots = max(segments, default=0) + 1
        self.numbers, self.serials = np.full(slots, -1, np.int32), np.zeros(slots, np.uint64)
        for slot, segment in segments.items():
            self.numbers[slot], self.serials[slot] = segment.file, segment.number
        self.shares = np.ones(ids.layout.num_columns + 1) if shares is None else shares
        """Share of a chunk behind its header that its first columns take, by their number; learned from reads."""

    def damaged(self, place: Any, reason: str) -> ValueError:
        """What to raise when the chunk at ``place`` cannot be used."""
        path = self.segments[slot_of(place)].path
        return ValueError(f"{path} is damaged at offset {offset_of(place) * 8}: {reason}; restore the file from a copy")


@kernel
def arena_offsets(places: np.ndarray, offsets: np.ndarray) -> int:
    """Where each chunk goes in the arena, in words; returns the words needed."""
    total = 0
    for index in range(len(places)):
        offsets[index] = total
        total += words_of(places[index])
    return total


@kernel
def _fetch(
    places: np.ndarray,
    files: np.ndarray,
    arena: np.ndarray,
    offsets: np.ndarray,
    header: int,
    share: float,
    sizes: np.ndarray,
) -> int:
    """Read the header and ``share`` of the rest of all chunks, asking for all before waiting for any.

    Fills ``sizes`` with the words read; returns -1, or the first chunk that came back short.
    """
    for index in range(len(places)):
        place = places[index]
        words = words_of(place)
        sizes[index] = min(words, header + np.int64(share * max(0, words - header)) + 1)
        if len(places) > 1:
            fadvise(files[slot_of(place)], offset_of(place) * 8, sizes[index] * 8, WILLNEED)
    for index in range(len(places)):
        place, size = places[index], sizes[index] * 8
        address = arena.ctypes.data + offsets[index] * 8
        if pread(files[slot_of(place)], address, np.uint64(size), offset_of(place) * 8) != size:
            return index
    return -1


@kernel
def _complete(
    places: np.ndarray,
    files: np.ndarray,
    arena: np.ndarray,
    offsets: np.ndarray,
    num_columns: int,
    columns: int,
    sizes: np.ndarray,
) -> Any:
    """Check headers, read what is missing of the first ``columns``, and check these; ``sizes`` becomes what they take.

    Returns the first chunk that is not sound and what is wrong with it, or (-1, 0).
    """
    for index in range(len(places)):
        place, top, fetched = places[index], offsets[index], sizes[index]
        words, events = words_of(place), count_of(place)
        if words < HEADER_WORDS + num_columns or head_of(arena, top, events, num_columns) != arena[top]:
            return index, DAMAGED
        needed = prefix_words(arena, top, columns)
        if needed > words or (columns == num_columns and needed != words):
            return index, DAMAGED
        if needed > fetched:
            size = (needed - fetched) * 8
            address = arena.ctypes.data + (top + fetched) * 8
            if pread(files[slot_of(place)], address, np.uint64(size), (offset_of(place) + fetched) * 8) != size:
                return index, SHORT
        sizes[index] = needed
        area = top + HEADER_WORDS + num_columns
        for column in range(columns):
            descriptor = arena[top + HEADER_WORDS + column]
            end = area + area_words(descriptor, events)
            if checksum_of(arena, area, end) != descriptor >> np.uint64(32):
                return index, DAMAGED
            area = end
    return -1, 0


@kernel
def _fetch_sound(
    places: np.ndarray,
    files: np.ndarray,
    arena: np.ndarray,
    offsets: np.ndarray,
    num_columns: int,
    columns: int,
    share: float,
    sizes: np.ndarray,
) -> Any:
    """``_fetch``, then ``_complete``: returns as the latter."""
    short = _fetch(places, files, arena, offsets, HEADER_WORDS + num_columns, share, sizes)
    if short >= 0:
        return short, SHORT
    return _complete(places, files, arena, offsets, num_columns, columns, sizes)


def fetch_chunks(
    places: np.ndarray, files: SegmentFiles, num_columns: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first ``columns`` of chunks, checked and ready to unpack.

    Args:
        places: uint64 [Q], places of distinct chunks.
        files: the segments they lie in.
        num_columns: columns of a chunk.
        columns: how many of them, from the first, are needed.

    Returns:
        An arena of words, and int64 [Q], where each chunk begins in it. Columns behind the first ``columns`` must not
        be touched.

    Raises:
        ValueError: when a chunk is damaged; names file and offset.
    """
    offsets, sizes = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
    arena = np.empty(arena_offsets(places, offsets) + SPARE_WORDS, np.uint64)
    header, share = HEADER_WORDS + num_columns, float(files.shares[columns])
    bad, reason = _fetch_sound(places, files.numbers, arena, offsets, num_columns, columns, share, sizes)
    if bad >= 0:
        raise files.damaged(
            places[bad], "it ends within a chunk" if reason == SHORT else "a chunk does not match its checksum"
        )
    if columns < num_columns and len(places) >= LEARNED_FROM:
        rest = words_of_all(places) - header
        files.shares[columns] = np.quantile((sizes - header) / np.maximum(1, rest), SUFFICES)
    return thaw(arena, offsets, columns), offsets


def words_of_all(places: np.ndarray) -> np.ndarray:
    """Words of the chunks at places, int64."""
    return ((places >> np.uint64(10)) & np.uint64(0x3FFF)).astype(np.int64)
