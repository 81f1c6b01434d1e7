"""From what nodes hold, chunks and rows, to histories, and from rows to new chunks.

Legend of shape suffixes: R requests; Q chunks; T events, those of a request one after the other: chunks from the
oldest, then recent ones.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from laser.seqvault.bits import HEADER_WORDS, area_words, events_of, head_of, prefix_words, worst_chunk_words
from laser.seqvault.checksum import checksum_of
from laser.seqvault.fetching import SPARE_WORDS
from laser.seqvault.filtering import Filter
from laser.seqvault.jit import kernel
from laser.seqvault.layout import Field, Layout
from laser.seqvault.packing import pack_chunks
from laser.seqvault.pieces import unpack_pieces
from laser.seqvault.planning import FOREVER
from laser.seqvault.ragged import Ragged

ENTRY = np.dtype([("first", "<f8"), ("last", "<f8"), ("count", "<u4"), ("number", "<u4")])
"""An entry of a user's directory of chunks."""


def row_type(layout: Layout) -> np.dtype:
    """An event as a row of bytes, timestamp first."""
    return np.dtype([(f.name, np.dtype(f.dtype).newbyteorder("<"), f.shape) for f in layout.fields])


def to_rows(layout: Layout, events: dict[str, np.ndarray], order: np.ndarray) -> np.ndarray:
    """Events in the given order as rows."""
    rows = np.empty(len(order), row_type(layout))
    for field in layout.fields:
        rows[field.name] = events[field.name][order]
    return rows


@kernel
def _check(arena: np.ndarray, offsets: np.ndarray, num_columns: int, users: np.ndarray) -> int:
    """-1, or the first chunk that is not what its checksums say; ``offsets`` has one more entry than chunks."""
    for chunk in range(len(offsets) - 1):
        top, end = offsets[chunk], offsets[chunk + 1]
        if end - top < HEADER_WORDS + num_columns or arena[top + 1] != users[chunk]:
            return chunk
        events = events_of(arena[top])
        if events == 0 or head_of(arena, top, events, num_columns) != arena[top]:
            return chunk
        if prefix_words(arena, top, num_columns) != end - top:
            return chunk
        area = top + HEADER_WORDS + num_columns
        for column in range(num_columns):
            descriptor = arena[top + HEADER_WORDS + column]
            stop = area + area_words(descriptor, events)
            if checksum_of(arena, area, stop) != descriptor >> np.uint64(32):
                return chunk
            area = stop
    return -1


@kernel
def _spans(
    times: np.ndarray,
    bounds: np.ndarray,
    before: np.ndarray,
    unlimited: bool,
    wanted: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
) -> bool:
    """First and last event of each request that it wants; False when the events of one are not in order of time."""
    for request in range(len(wanted)):
        low, high = bounds[request], bounds[request + 1]
        for event in range(low + 1, high):
            if times[event] < times[event - 1]:
                return False
        first = low
        if unlimited:
            low = high
        while low < high:
            middle = (low + high) >> 1
            if times[middle] < before[request]:
                low = middle + 1
            else:
                high = middle
        start[request], stop[request] = max(first, low - min(wanted[request], low - first)), low
    return True


@dataclass(frozen=True)
class Part:
    """Some of the events of ``Stored``, as one array has them.

    Args:
        start: int64 [Q], first event of each chunk.
        stop: int64 [Q], the end.
        dest: int64 [Q], where it goes in the array.
        rows: which recent events.
        rows_at: where each goes.
        size: of the array.
    """

    start: np.ndarray
    stop: np.ndarray
    dest: np.ndarray
    rows: np.ndarray
    rows_at: np.ndarray
    size: int


@dataclass(frozen=True)
class Stored:
    """Histories as nodes sent them.

    Args:
        layout: fields of an event.
        arena: words of all chunks and spare ones.
        offsets: int64 [Q], where each chunk begins.
        owner: int64 [Q], whose request it answers.
        rows: recent events.
        rows_owner: int64, whose each is.
        all: the place of every event among all T.
        bounds: int64 [R + 1], events of each request.
    """

    layout: Layout
    arena: np.ndarray
    offsets: np.ndarray
    owner: np.ndarray
    rows: np.ndarray
    rows_owner: np.ndarray
    all: Part
    bounds: np.ndarray

    @classmethod
    def of(cls, layout: Layout, users: np.ndarray, answers: Sequence[Sequence[bytes]]) -> Stored:
        """Check what nodes sent: per request recent rows, then chunks, the newest first.

        Raises:
            ValueError: when it is damaged.
        """
        chunks = [chunk for answer in answers for chunk in reversed(answer[1:])]
        sizes = np.array([len(chunk) for chunk in chunks], np.int64)
        tails = np.array([len(answer[0]) for answer in answers], np.int64)
        owner = np.repeat(np.arange(len(answers)), [len(answer) - 1 for answer in answers])
        kind = row_type(layout)
        if (bad := np.flatnonzero(sizes % 8)).size:
            raise _damaged(users[owner[bad[0]]])
        if (bad := np.flatnonzero(tails % kind.itemsize)).size:
            raise _damaged(users[bad[0]])
        arena = np.frombuffer(b"".join([*chunks, bytes(8 * SPARE_WORDS)]), np.uint64)
        ends = np.concatenate([[0], np.cumsum(sizes // 8)])
        if (first := _check(arena, ends, layout.num_columns, users[owner])) >= 0:
            raise _damaged(users[owner[first]])
        counts = ((arena[ends[:-1]] >> np.uint64(8)) & np.uint64(0x3FF)).astype(np.int64)
        packed = np.bincount(owner, counts, len(answers)).astype(np.int64)
        recent = tails // kind.itemsize
        bounds = np.concatenate([[0], np.cumsum(packed + recent)])
        before = np.cumsum(counts) - counts  # events of earlier chunks; rows of earlier requests come in between
        dest = before + np.concatenate([[0], np.cumsum(recent)])[owner]
        rows = np.frombuffer(b"".join([answer[0] for answer in answers]), kind)
        rows_at = np.arange(len(rows)) + np.repeat(np.cumsum(packed), recent)
        every = Part(np.zeros_like(counts), counts, dest, np.arange(len(rows)), rows_at, int(bounds[-1]))
        rows_owner = np.repeat(np.arange(len(answers)), recent)
        return cls(layout, arena, ends[:-1], owner, rows, rows_owner, every, bounds)

    def values(self, field: Field, part: Part | None = None) -> np.ndarray:
        """A field of all T events, or of a part of them."""
        part = part or self.all
        flat = np.empty(part.size * field.length, field.unsigned)
        chunk_off = np.arange(len(self.offsets) + 1)
        none, matches = np.empty(0, np.int64), np.empty(0, np.uint16)
        for component in range(field.length):
            unpack_pieces(
                chunk_off, chunk_off[:-1], part.start, part.stop, part.dest, self.arena, self.offsets, matches, none,
                self.layout.first_column[field.name] + component, component, field.length, flat, False, flat[:0],
            )  # fmt: skip
        found = flat.view(field.dtype).reshape(-1, *field.shape)
        found[part.rows_at] = self.rows[field.name][part.rows]
        return found

    def between(self, start: np.ndarray, stop: np.ndarray) -> tuple[Part, np.ndarray]:
        """The events from ``start`` to ``stop`` (int64 [R]) of each request, and their offsets."""
        every, owner = self.all, self.owner
        offsets = np.concatenate([[0], np.cumsum(stop - start)])
        low = np.clip(start[owner] - every.dest, 0, every.stop)
        high = np.clip(stop[owner] - every.dest, low, every.stop)
        dest = every.dest + low - start[owner] + offsets[owner]
        kept = (every.rows_at >= start[self.rows_owner]) & (every.rows_at < stop[self.rows_owner])
        rows = np.flatnonzero(kept)
        rows_at = (every.rows_at - start[self.rows_owner] + offsets[self.rows_owner])[rows]
        return Part(low, high, dest, rows, rows_at, int(offsets[-1])), offsets

    def select(
        self, before: np.ndarray | None, wanted: np.ndarray, where: Filter | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the events to return, by request and time, and the offsets of requests.

        Args:
            before: int64 [R], or ``None``.
            wanted: int64 [R].
            where: which events to return.
        """
        times, requests = self.values(self.layout.fields[0]), len(wanted)
        owner = np.repeat(np.arange(requests), np.diff(self.bounds))
        order = np.arange(len(times))
        if np.any((times[1:] < times[:-1]) & (owner[1:] == owner[:-1])):
            order = np.lexsort((times, owner))  # stable: of equal times the one that arrived first
        kept = np.ones(len(times), np.bool_) if before is None else times < before[owner]
        if where is not None:
            kept &= where.keep({field.name: self.values(field) for field in where.fields})
        order = order[kept[order]]
        counts = np.bincount(owner[order], minlength=requests)
        newer = np.repeat(np.cumsum(counts), counts) - np.arange(len(order))  # of the request, from this event on
        order = order[newer <= wanted[owner[order]]]
        return order, np.concatenate([[0], np.cumsum(np.minimum(counts, wanted))])

    def ragged(
        self, fields: Sequence[Field], before: np.ndarray | None, wanted: np.ndarray, where: Filter | None
    ) -> Ragged:
        """The answer to a read; see ``select``."""
        if where is None:
            times, size = self.values(self.layout.fields[0]), len(wanted)
            start, stop = np.empty(size, np.int64), np.empty(size, np.int64)
            cut = np.full(size, FOREVER) if before is None else before
            if _spans(times, self.bounds, cut, before is None, wanted, start, stop):
                part, offsets = self.between(start, stop)
                return Ragged({field.name: self.values(field, part) for field in fields}, offsets)
        order, offsets = self.select(before, wanted, where)
        return Ragged({field.name: self.values(field)[order] for field in fields}, offsets)


def pack_history(
    layout: Layout, user: int, columns: np.ndarray, chunk_events: int, first_number: int
) -> tuple[np.ndarray, list[bytes]]:
    """Chunks of one user's events, all full but the newest.

    Args:
        layout: fields of an event.
        user: whose.
        columns: uint64 [columns, T], ascending by time.
        chunk_events: of a full chunk.
        first_number: of the first chunk.

    Returns:
        Directory entries and contents of the chunks.
    """
    size = columns.shape[1]
    cuts = np.append(np.arange(0, size, chunk_events), size)
    count = len(cuts) - 1
    words = np.zeros(count * worst_chunk_words(0, layout.num_columns) + columns.size, np.uint64)
    places = np.empty(count + 1, np.int64)
    pack_chunks(columns, layout.signed, np.full(count, user, np.uint64), cuts, words, places)
    entries, times = np.empty(count, ENTRY), columns[0].view(np.int64)
    entries["first"], entries["last"] = times[cuts[:-1]], times[cuts[1:] - 1]
    entries["count"], entries["number"] = np.diff(cuts), first_number + np.arange(count)
    return entries, [words[low:high].tobytes() for low, high in pairwise(places)]


def parse_directory(data: bytes | None) -> np.ndarray:
    """Entries of a user's directory.

    Raises:
        ValueError: when it is damaged.
    """
    if data is not None and len(data) % ENTRY.itemsize:
        raise ValueError(f"a directory in the cluster has {len(data)} bytes, which is no number of entries")
    return np.frombuffer(data or b"", ENTRY)


def _damaged(user: int) -> ValueError:
    return ValueError(
        f"the history of user {user} in the cluster is damaged; delete the user and load the events again"
    )


assert ENTRY.itemsize == struct.calcsize("<ddII")
