"""Events that are in the log but not yet in a segment, in memory and ready to read.

Events lie in arrival order, one array per field, append-only; each links to the user's previous one. A reader that took
references to the arrays may go on using them while more are appended, for what it saw does not change.

Legend of shape suffixes: N events of a call.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.index import GOLDEN, NEVER, Index, find_row
from laser.seqvault.jit import kernel, memmove
from laser.seqvault.layout import Layout

SLOT = np.dtype([("user", "<u8"), ("last", "<i8"), ("head", "<i4"), ("count", "<i4"), ("state", "<i4")])
CODED_AT_ONCE = 1 << 15
EMPTY, ORDERED, MIXED = 0, 1, 2
"""State of a slot. MIXED: an event arrived that is older than one before it; a read must sort."""


@kernel
def find_tail(slots: np.ndarray, user: Any) -> Any:
    """Slot of a user, or of the empty slot where it would go."""
    slot = np.int64((user * GOLDEN) >> np.uint64(20)) & (len(slots) - 1)
    while slots[slot].state != EMPTY and slots[slot].user != user:
        slot = (slot + 1) & (len(slots) - 1)
    return slot


@kernel
def _insert(
    users: np.ndarray,
    times: np.ndarray,
    begin: int,
    offset: int,
    slots: np.ndarray,
    used: np.ndarray,
    previous: np.ndarray,
    table: np.ndarray,
    rows: np.ndarray,
) -> int:
    """Link events from ``begin`` on; returns where it stopped for want of slots (or their number)."""
    for position in range(begin, len(users)):
        slot = find_tail(slots, users[position])
        if slots[slot].state == EMPTY:
            if 2 * (used[0] + 1) > len(slots):
                return position
            used[0] += 1
            row = find_row(table, rows, users[position])
            slots[slot].user = users[position]
            slots[slot].state = ORDERED
            slots[slot].head = -1
            slots[slot].count = 0
            slots[slot].last = rows[row].last if row >= 0 else NEVER
        if times[position] < slots[slot].last:
            slots[slot].state = MIXED
        else:
            slots[slot].last = times[position]
        previous[offset + position] = slots[slot].head
        slots[slot].head = offset + position
        slots[slot].count += 1
    return len(users)


@kernel
def _rehash(old: np.ndarray, new: np.ndarray) -> None:
    for index in range(len(old)):
        if old[index].state != EMPTY:
            slot = find_tail(new, old[index].user)
            new[slot].user = old[index].user
            new[slot].last = old[index].last
            new[slot].head = old[index].head
            new[slot].count = old[index].count
            new[slot].state = old[index].state


@kernel
def scatter(
    records: np.ndarray, size: int, places: np.ndarray, addresses: np.ndarray, widths: np.ndarray, begin: int
) -> None:
    """Parts of records to columns in memory: the part at ``places[c]`` to ``addresses[c]``, from event ``begin`` on."""
    source = records.ctypes.data
    for column in range(len(places)):
        width = widths[column]
        dest, at = addresses[column] + begin * width, source + places[column]
        for _ in range(len(records) // size):
            memmove(dest, at, width)
            dest += width
            at += size


@dataclass(frozen=True)
class Frozen:
    """Recent operations up to a moment, on their way into a segment; later ones do not change it."""

    stop: int
    """Events up to this position of the tail."""
    kept: np.ndarray
    """Positions of those that were not deleted."""
    forgotten: frozenset[int]
    """Users deleted up to then."""
    users: np.ndarray
    events: dict[str, np.ndarray]

    def coded(self, dictionaries: Dictionaries, lock: threading.RLock) -> dict[str, np.ndarray]:
        """All events with codes; deleted ones take part, for other processes gave their ids codes."""
        return coded_in_turns(self.events, self.stop, dictionaries, lock)


def coded_in_turns(
    events: dict[str, np.ndarray], size: int, dictionaries: Dictionaries, lock: threading.RLock
) -> dict[str, np.ndarray]:
    """The first ``size`` events with codes in the fields that have a dictionary; new ids are added in order of arrival.

    The vault's lock is held for some events at a time, so that reads go on.
    """
    coded = {}
    for name, dictionary in dictionaries.by_field.items():
        parts = [events[name][:0].astype(np.int32)]
        for start in range(0, size, CODED_AT_ONCE):
            with lock:
                parts.append(dictionary.encode(events[name][start : min(start + CODED_AT_ONCE, size)]))
        coded[name] = np.concatenate(parts)
    return {**events, **coded}


class Tail:
    """Recent events in memory. Not thread-safe: the vault's lock guards it."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.size = 0
        self.users = np.empty(0, np.uint64)
        self.events = layout.empty(0)
        self.previous = np.empty(0, np.int32)
        self.slots = np.zeros(64, SLOT)
        self.used = np.zeros(1, np.int64)
        self._addresses = self._widths = np.empty(0, np.int64)
        self._codes: dict[str, np.ndarray] = {}
        self._num_coded = 0
        self._coding: Dictionaries | None = None
        self.forgotten: set[int] = set()
        """Users deleted since the last checkpoint."""

    @property
    def times(self) -> np.ndarray:
        """Timestamps, with room to spare at the end."""
        return self.events[self.layout.names[0]]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        arrays = (self.users, self.previous, self.slots, *self.events.values())
        return sum(array.nbytes for array in arrays)

    def append(self, users: np.ndarray, events: dict[str, np.ndarray], table: np.ndarray, rows: np.ndarray) -> None:
        """Add N events; ``table`` and ``rows`` are the index's, to know how new the stored events are."""
        stop = self.size + len(users)
        self._reserve(stop)
        self.users[self.size : stop] = users
        for name, values in events.items():
            self.events[name][self.size : stop] = values
        self._link(stop, table, rows)

    def append_records(
        self, records: np.ndarray, size: int, places: np.ndarray, table: np.ndarray, rows: np.ndarray
    ) -> None:
        """Add events that lie one after the other in ``records`` (uint8), each ``size`` bytes.

        ``places`` tells where the user and each field begin in these; ``table`` and ``rows`` are as in ``append``.
        """
        stop = self.size + len(records) // size
        self._reserve(stop)
        scatter(records, size, places, self._addresses, self._widths, self.size)
        self._link(stop, table, rows)

    def _link(self, stop: int, table: np.ndarray, rows: np.ndarray) -> None:
        """Events up to ``stop`` are in the arrays: link each to the user's previous one."""
        users, times, position = self.users[self.size : stop], self.times[self.size : stop], 0
        while True:
            position = _insert(users, times, position, self.size, self.slots, self.used, self.previous, table, rows)
            if position == len(users):
                break
            slots = np.zeros(len(self.slots) * 4, SLOT)
            _rehash(self.slots, slots)
            self.slots = slots
        self.size = stop

    def _reserve(self, stop: int) -> None:
        if stop <= len(self.users):
            return
        capacity = max(1024, stop, 2 * len(self.users))
        self.users, self.previous = _grown(self.users, capacity), _grown(self.previous, capacity)
        self.events = {name: _grown(values, capacity) for name, values in self.events.items()}
        columns = [self.users, *self.events.values()]
        self._addresses = np.array([column.__array_interface__["data"][0] for column in columns], np.int64)
        self._widths = np.array([column.strides[0] for column in columns], np.int64)

    def coded(self, dictionaries: Dictionaries) -> dict[str, np.ndarray]:
        """Events with codes in the fields that have a dictionary, new ids coded in order of arrival."""
        if self._coding is not dictionaries:
            self._codes, self._num_coded, self._coding = {}, 0, dictionaries
        if self._num_coded < self.size:
            new = slice(self._num_coded, self.size)
            for name, dictionary in dictionaries.by_field.items():
                codes = self._codes.get(name, self.events[name][:0].astype(np.int32))
                if len(codes) < self.size:
                    codes = self._codes[name] = _grown(codes, len(self.users))
                codes[new] = dictionary.encode(self.events[name][new])
            self._num_coded = self.size
        return {**self.events, **self._codes}

    def forget(self, user: int) -> None:
        """Drop the user's events, and remember that those in segments are to go too."""
        slot = find_tail(self.slots, np.uint64(user))
        if self.slots[slot]["state"] != EMPTY:
            self.slots[slot]["state"] = ORDERED
            self.slots[slot]["head"], self.slots[slot]["count"], self.slots[slot]["last"] = -1, 0, NEVER
        self.forgotten.add(int(user))

    def freeze(self) -> Frozen:
        """Everything so far, for a segment; it stays readable here until the tail ``since`` then replaces this one."""
        frozen = Frozen(self.size, self.kept(), frozenset(self.forgotten), self.users, self.events)
        self.forgotten.clear()
        return frozen

    def thaw(self, frozen: Frozen) -> None:
        """The segment could not be written: all is recent again."""
        self.forgotten |= frozen.forgotten

    def since(self, frozen: Frozen, index: Index) -> Tail:
        """What came after ``frozen``, which ``index`` has by now."""
        fresh, positions = Tail(self.layout), self.kept()
        positions = positions[np.searchsorted(positions, frozen.stop) :]
        events = {name: values[positions] for name, values in self.events.items()}
        fresh.append(self.users[positions], events, index.table, index.rows)
        fresh.forgotten = set(self.forgotten)
        return fresh

    def kept(self) -> np.ndarray:
        """Positions of the events that were not deleted, in arrival order."""
        if not self.forgotten:
            return np.arange(self.size)
        positions = np.zeros(self.size, np.bool_)
        _mark(self.slots, self.previous, positions)
        return np.flatnonzero(positions)


@kernel
def _mark(slots: np.ndarray, previous: np.ndarray, positions: np.ndarray) -> None:
    for slot in range(len(slots)):
        if slots[slot].state != EMPTY:
            event = slots[slot].head
            while event >= 0:
                positions[event] = True
                event = previous[event]


def _grown(values: np.ndarray, capacity: int) -> np.ndarray:
    grown = np.empty((capacity, *values.shape[1:]), values.dtype)
    grown[: len(values)] = values
    return grown
