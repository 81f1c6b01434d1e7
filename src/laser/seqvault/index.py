"""The DRAM index: where each user's chunks lie, newest first.

About 37 bytes a user with up to 1000 events and 16 for each further chunk: an open-addressing table of row numbers
(4 bytes a slot), a row per user with the record of the newest chunk (32), a record per older chunk (16). Chunks of a
user form a chain from the newest to the oldest; a chunk that is followed by a newer one moves from the row to a record.

A segment's directory is a list of edits of this index; each says how many of the user's oldest chunks stay ("keep")
before its own chunk follows. "keep" counts from the old end, so that replaying stays right when a segment whose chunks
are all superseded has been dropped.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laser.seqvault.jit import kernel

ENTRY = np.dtype(
    [
        ("user", "<u8"),
        ("first", "<i8"),
        ("last", "<i8"),
        ("offset", "<u4"),
        ("words", "<u4"),
        ("count", "<u4"),
        ("keep", "<u4"),
    ]
)
"""One edit of a directory: timestamps of the chunk's first and last event, its place in words, its events. ``count`` 0
is a chunk that does not exist: the user's older chunks beyond ``keep`` are dropped and nothing follows."""

ROW = np.dtype([("user", "<u8"), ("last", "<i8"), ("place", "<u8"), ("first", "<f4"), ("older", "<i4")])
"""A user: timestamp of the newest event, the newest chunk, and the record of the next older one or -1."""
CHUNK = np.dtype([("place", "<u8"), ("first", "<f4"), ("older", "<i4")])
"""``place``: segment slot (13 bits from the top), offset in words (27), words (14), events (10); 0 in a row: no chunk.
``first``: timestamp of the first event rounded down to float32, enough to pass over chunks that lie wholly after a
cut."""

MAX_SLOTS = 1 << 13
MAX_SEGMENT_WORDS = 1 << 27
NEVER = np.iinfo(np.int64).min
LOAD = 0.875
"""Share of the table in use at most."""
NO_PLACE = np.uint64(0)

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@kernel
def place_of(slot: int, offset: int, words: int, count: int) -> Any:
    """Pack a chunk's place into one word."""
    return (
        np.uint64(slot) << np.uint64(51)
        | np.uint64(offset) << np.uint64(24)
        | np.uint64(words) << np.uint64(10)
        | np.uint64(count)
    )


@kernel
def slot_of(place: Any) -> Any:
    """Segment slot of a place."""
    return np.int64(place >> np.uint64(51))


@kernel
def offset_of(place: Any) -> Any:
    """Offset in words of a place."""
    return np.int64((place >> np.uint64(24)) & np.uint64(0x7FFFFFF))


@kernel
def words_of(place: Any) -> Any:
    """Words of the chunk at a place."""
    return np.int64((place >> np.uint64(10)) & np.uint64(0x3FFF))


@kernel
def count_of(place: Any) -> Any:
    """Events of the chunk at a place."""
    return np.int64(place & np.uint64(0x3FF))


@kernel
def find_row(table: np.ndarray, rows: np.ndarray, user: Any) -> Any:
    """Row of a user; when unknown, minus 1 minus the slot of the table where it would go."""
    size = np.uint64(len(table))
    # The upper half of the product, times the size, picks a slot for any size: the table need not be a power of two.
    slot = np.int64((((user * GOLDEN) >> np.uint64(32)) * size) >> np.uint64(32))
    while table[slot] >= 0:
        if rows[table[slot]].user == user:
            return np.int64(table[slot])
        slot += 1
        if slot == len(table):
            slot = 0
    return -1 - slot


@kernel
def next_older(chunks: np.ndarray, record: int) -> Any:
    """Place, first timestamp and next older record of a chunk by its record; place 0 when there is none."""
    if record < 0:
        return NO_PLACE, np.float32(0), np.int32(-1)
    return chunks[record].place, chunks[record].first, chunks[record].older


@kernel
def _floor_float(value: int) -> Any:
    """Largest float32 not above an int64."""
    rounded = np.float32(value)
    # 2**63 itself is no int64, so compare in float64 before converting back.
    if np.float64(rounded) >= 9223372036854775808.0 or np.int64(rounded) > value:
        rounded = np.nextafter(rounded, np.float32(-np.inf))
    return rounded


@kernel
def _rehash(table: np.ndarray, rows: np.ndarray, num_rows: int) -> None:
    table[:] = -1
    for row in range(num_rows):
        table[-1 - find_row(table, rows, rows[row].user)] = row


@kernel
def _apply(
    entries: np.ndarray,
    begin: int,
    slot: int,
    table: np.ndarray,
    rows: np.ndarray,
    chunks: np.ndarray,
    used: np.ndarray,
    live: np.ndarray,
) -> int:
    """Apply edits from ``begin`` on; returns where it stopped for want of room (or their number)."""
    for position in range(begin, len(entries)):
        entry = entries[position]
        if used[0] >= len(rows) or used[1] >= len(chunks) or used[0] >= len(table) * LOAD:
            return position
        row = find_row(table, rows, entry.user)
        if row < 0:
            if entry.count == 0:
                continue
            table[-1 - row] = used[0]
            row = used[0]
            used[0] += 1
            rows[row].user = entry.user
            rows[row].place = NO_PLACE
            rows[row].older = -1
        for _ in range(num_chunks_of(rows, row, chunks) - np.int64(entry.keep)):
            _drop_newest(rows, row, chunks, used, live)
        rows[row].last = NEVER
        if entry.count > 0:
            if rows[row].place != NO_PLACE:
                chunks[used[1]].place = rows[row].place
                chunks[used[1]].first = rows[row].first
                chunks[used[1]].older = rows[row].older
                rows[row].older = used[1]
                used[1] += 1
            rows[row].place = place_of(slot, entry.offset, entry.words, entry.count)
            rows[row].first = _floor_float(entry.first)
            rows[row].last = entry.last
            live[slot] += entry.words
            used[2] += entry.count
    return len(entries)


@kernel
def num_chunks_of(rows: np.ndarray, row: int, chunks: np.ndarray) -> int:
    """Chunks of a row's user."""
    length, record = 0, rows[row].older
    if rows[row].place != NO_PLACE:
        length = 1
    while record >= 0:
        length += 1
        record = chunks[record].older
    return length


@kernel
def _drop_newest(rows: np.ndarray, row: int, chunks: np.ndarray, used: np.ndarray, live: np.ndarray) -> None:
    """Take a user's newest chunk off; the next older one moves into the row, its record stays unused."""
    place = rows[row].place
    live[slot_of(place)] -= words_of(place)
    used[2] -= count_of(place)
    rows[row].place, rows[row].first, rows[row].older = next_older(chunks, rows[row].older)


@kernel
def _forget(row: int, rows: np.ndarray, chunks: np.ndarray, used: np.ndarray, live: np.ndarray) -> None:
    while rows[row].place != NO_PLACE:
        _drop_newest(rows, row, chunks, used, live)
    rows[row].last = NEVER


@kernel
def _compacted(
    rows: np.ndarray, num_rows: int, chunks: np.ndarray, new_rows: np.ndarray, new_chunks: np.ndarray
) -> Any:
    """Copy rows that have chunks, and their chains; returns (rows, chunk records) copied."""
    num_new, num_chunks = 0, 0
    for row in range(num_rows):
        if rows[row].place == NO_PLACE:
            continue
        new_rows[num_new] = rows[row]
        record = rows[row].older
        if record >= 0:
            new_rows[num_new].older = num_chunks
        while record >= 0:
            new_chunks[num_chunks].place = chunks[record].place
            new_chunks[num_chunks].first = chunks[record].first
            record = chunks[record].older
            new_chunks[num_chunks].older = num_chunks + 1 if record >= 0 else -1
            num_chunks += 1
        num_new += 1
    return num_new, num_chunks


class Index:
    """Users and their chunks. Not thread-safe: the vault's lock guards it."""

    def __init__(self, rows: np.ndarray | None = None, chunks: np.ndarray | None = None) -> None:
        self.rows = np.zeros(16, ROW) if rows is None else rows
        self.chunks = np.zeros(16, CHUNK) if chunks is None else chunks
        num_rows, num_chunks = (0, 0) if rows is None or chunks is None else (len(rows), len(chunks))
        self.used = np.array([num_rows, num_chunks, 0], np.int64)
        """Rows, chunk records (superseded ones included), events."""
        self.live = np.zeros(MAX_SLOTS, np.int64)
        """Words of live chunks per segment slot."""
        self.table = np.full(max(16, int(len(self.rows) / LOAD) + 1), -1, np.int32)
        _rehash(self.table, self.rows, num_rows)
        if num_rows:
            places = np.concatenate([self.rows["place"], self.chunks["place"][:num_chunks]])
            self.used[2] = (places & np.uint64(0x3FF)).sum()
            words = ((places >> np.uint64(10)) & np.uint64(0x3FFF)).astype(np.float64)
            slots = (places >> np.uint64(51)).astype(np.int64)
            self.live[:] = np.bincount(slots, words, MAX_SLOTS).astype(np.int64)

    def apply(self, entries: np.ndarray, slot: int) -> None:
        """Apply a directory (``ENTRY`` records) of the segment in ``slot``."""
        position = 0
        while True:
            position = _apply(entries, position, slot, self.table, self.rows, self.chunks, self.used, self.live)
            if position == len(entries):
                return
            self._grow(len(entries) - position)

    def _grow(self, coming: int) -> None:
        num_rows, num_chunks = int(self.used[0]), int(self.used[1])
        if num_rows >= len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros(max(16, min(coming, num_rows), num_rows // 8), ROW)])
        if num_chunks >= len(self.chunks):
            self.chunks = np.concatenate(
                [self.chunks, np.zeros(max(16, min(coming, num_chunks), num_chunks // 8), CHUNK)]
            )
        if num_rows >= len(self.table) * LOAD:
            self.table = np.empty(int(max(num_rows * 1.25, len(self.rows)) / LOAD) + 16, np.int32)
            _rehash(self.table, self.rows, num_rows)

    def copy(self) -> Index:
        """An index that may change while this one stays. The chunk records are shared: they are only ever added to."""
        twin = Index.__new__(Index)
        twin.rows, twin.table, twin.chunks = self.rows.copy(), self.table.copy(), self.chunks
        twin.used, twin.live = self.used.copy(), self.live.copy()
        return twin

    def forget(self, user: int) -> bool:
        """Drop all chunks of a user; whether there were any."""
        row = find_row(self.table, self.rows, np.uint64(user))
        if row < 0 or self.rows[row]["place"] == NO_PLACE:
            return False
        _forget(row, self.rows, self.chunks, self.used, self.live)
        return True

    def compacted(self) -> Index:
        """The same index without superseded chunk records and forgotten users, its arrays exactly filled."""
        rows, chunks = np.empty(int(self.used[0]), ROW), np.empty(int(self.used[1]), CHUNK)
        num_rows, num_chunks = _compacted(self.rows, int(self.used[0]), self.chunks, rows, chunks)
        return Index(rows[:num_rows].copy(), chunks[:num_chunks].copy())

    @property
    def users(self) -> np.ndarray:
        """Ids of users with at least one chunk."""
        rows = self.rows[: self.used[0]]
        return rows["user"][rows["place"] != NO_PLACE]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.table.nbytes + self.rows.nbytes + self.chunks.nbytes
