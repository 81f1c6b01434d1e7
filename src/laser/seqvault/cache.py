"""Decoded chunks of hot users in memory, up to a budget of bytes.

A chunk never changes, and its file's number is never given again, so a cached one is right for good: appends, deletions
and compaction need not be told to it. What they change is which chunks a read asks for.

Eviction is S3-FIFO (Yang et al., SOSP 2023): new chunks enter a small queue and reach the main one when asked for
again, so that a scan of many users passes through a tenth of the memory; benchmarks/seqvault/cache_policies.py compares
it with others.

Legend of shape suffixes: Q distinct chunks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np

from laser.seqvault.layout import Field, Layout

SMALL = 0.1
"""Share of the budget for chunks that were asked for once."""
MOST_USES = 3
OVERHEAD = 400
"""Bytes that an entry takes beside its values, about."""


@dataclass(slots=True)
class Entry:
    """Values of a chunk, field by field as ``Rows`` says, and their address."""

    memory: np.ndarray
    address: int = field(init=False)
    uses: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.address = self.memory.__array_interface__["data"][0]

    @property
    def nbytes(self) -> int:
        """Bytes that count against the budget."""
        return self.memory.nbytes + OVERHEAD


@dataclass(frozen=True)
class Rows:
    """How the values of a cached chunk lie in memory: fields one after the other, times first.

    Args:
        codes: whether fields with a dictionary are held as codes.
        fields: that are held, in order.
        dtypes: their types.
    """

    codes: bool
    fields: tuple[Field, ...]
    dtypes: tuple[np.dtype, ...]

    @cached_property
    def widths(self) -> list[int]:
        """Bytes per event of each field."""
        return [dtype.itemsize * field.length for field, dtype in zip(self.fields, self.dtypes)]

    @cached_property
    def begin(self) -> list[int]:
        """Bytes per event of the fields before each."""
        return list(accumulate(self.widths, initial=0))[:-1]

    def with_fields(self, wanted: Mapping[Field, np.dtype]) -> Rows:
        """These and more fields; the same object when they are there."""
        merged = {**dict(zip(self.fields, self.dtypes)), **wanted}
        fields, dtypes = tuple(merged), tuple(merged.values())
        return self if (fields, dtypes) == (self.fields, self.dtypes) else Rows(self.codes, fields, dtypes)


class ChunkCache:
    """Cached chunks by key (``held.keys_of``); safe to share between threads.

    Args:
        budget: bytes at most; reads that are going on may hold evicted chunks for a moment longer.
        layout: fields of an event.
    """

    def __init__(self, budget: int, layout: Layout) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        time = layout.fields[0]
        self._rows = {codes: Rows(codes, (time,), (np.dtype(time.dtype),)) for codes in (False, True)}
        self._entries: dict[int, Entry] = {}
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._ghost: OrderedDict[int, None] = OrderedDict()
        self._bytes = self._small_bytes = 0
        self._hits = self._misses = 0

    def serving(self, codes: bool, fields: Mapping[Field, np.dtype]) -> Rows:
        """How entries hold values for reads of these fields, and all that such reads have asked for so far."""
        with self._lock:
            rows = self._rows[codes].with_fields(fields)
            if rows is not self._rows[codes]:
                self._clear()
                self._rows[codes] = rows
            return rows

    def find(self, keys: list[int], rows: Rows) -> list[Entry | None]:
        """Entries by key, if they are still held as ``rows`` says."""
        with self._lock:
            if rows not in self._rows.values():
                return [None] * len(keys)
            found = [self._entries.get(key) for key in keys]
            for entry in found:
                if entry is None:
                    self._misses += 1
                else:
                    self._hits += 1
                    entry.uses = min(entry.uses + 1, MOST_USES)
            return found

    def add(self, keys: list[int], rows: Rows, entries: list[Entry]) -> None:
        """Keep new entries, and let go of others."""
        with self._lock:
            if rows not in self._rows.values():
                return  # another thread asked for more fields meanwhile
            for key, entry in zip(keys, entries):
                if key in self._entries:
                    continue
                self._entries[key] = entry
                self._bytes += entry.nbytes
                if key in self._ghost:
                    del self._ghost[key]
                    self._main.append(key)
                else:
                    self._small.append(key)
                    self._small_bytes += entry.nbytes
            while self._bytes > self.budget:
                self._evict()

    def _evict(self) -> None:
        if self._small and (self._small_bytes > SMALL * self.budget or not self._main):
            key = self._small.popleft()
            entry = self._entries[key]
            self._small_bytes -= entry.nbytes
            if entry.uses > 1:
                entry.uses = 0
                self._main.append(key)
                return
            self._ghost[key] = None
            while len(self._ghost) > len(self._entries):
                self._ghost.popitem(last=False)
        else:
            key = self._main.popleft()
            entry = self._entries[key]
            if entry.uses > 0:
                entry.uses -= 1
                self._main.append(key)
                return
        del self._entries[key]
        self._bytes -= entry.nbytes

    def _clear(self) -> None:
        self._entries.clear()
        self._small.clear()
        self._main.clear()
        self._bytes = self._small_bytes = 0

    def stats(self) -> dict[str, int]:
        """Bytes held, chunks, and how many chunks reads found or not."""
        with self._lock:
            return {
                "cache_bytes": self._bytes,
                "cache_chunks": len(self._entries),
                "cache_hits": self._hits,
                "cache_misses": self._misses,
            }
