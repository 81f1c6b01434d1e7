"""What is kept of a user between requests: the part of each event's contribution that no request changes.

The history itself is read from the store for every request, so that the answer is fresh to the last append, by whatever
process it came. Kept are the events of the last request and the rows that the model made of them. Where the history
read now begins within the kept one and agrees with it event by event, rows are taken over and only those of new events
are computed; where it does not (an event came late, or was deleted), all are computed again.

Legend of shape suffixes: L events of a history; C width of a row.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Events = dict[str, np.ndarray]
TIES = 8
"""Places of equal time that are tried as the beginning of a history."""


@dataclass(frozen=True)
class _Kept:
    events: Events
    row_LC: Tensor

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self.events.values()) + self.row_LC.nbytes


class EventRows:
    """A cache of rows by user, the least recently used leaving first. Safe to share between threads.

    Args:
        compute: makes rows [L, C] of events.
        timestamp: name of the events' time.
        most_bytes: of all that is kept; 0 keeps nothing.
    """

    def __init__(self, compute: Callable[[Events], Tensor], timestamp: str, most_bytes: int) -> None:
        self._compute, self._timestamp, self._most = compute, timestamp, most_bytes
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = self.reused = self.computed = 0
        """Bytes kept; events whose rows were taken over, and computed."""

    def of(self, key: int, events: Events) -> Tensor:
        """Rows [L, C] of a user's events, oldest first, L at least 1."""
        length = len(events[self._timestamp])
        with self._lock:
            kept = self._kept.get(key)
        first, same = (0, 0) if kept is None else self._overlap(kept.events, events)
        if same == length:
            assert kept is not None
            self._keep(key, kept, same, 0)
            return kept.row_LC[first : first + same]
        row_LC = self._compute({name: values[same:] for name, values in events.items()})
        if kept is not None and same:
            row_LC = torch.cat([kept.row_LC[first : first + same], row_LC])
        # Copied: what was read for many requests at once lies in one piece of memory, which must not be held for one.
        copied = {name: values.copy() for name, values in events.items()}
        self._keep(key, _Kept(copied, row_LC), same, length - same)
        return row_LC

    def _overlap(self, old: Events, new: Events) -> tuple[int, int]:
        """Where ``new`` begins in ``old``, and how many events agree from there on: all that both have, or none."""
        time_old, time_new = old[self._timestamp], new[self._timestamp]
        low, high = (int(np.searchsorted(time_old, time_new[0], side)) for side in ("left", "right"))
        for first in range(low, min(high, low + TIES)):
            same = min(len(time_old) - first, len(time_new))
            if all(np.array_equal(old[name][first : first + same], new[name][:same]) for name in new):
                return first, same
        return 0, 0

    def _keep(self, key: int, kept: _Kept, reused: int, computed: int) -> None:
        with self._lock:
            self.reused += reused
            self.computed += computed
            before = self._kept.pop(key, None)
            self.bytes -= before.nbytes if before is not None else 0
            if kept.nbytes > self._most:
                return
            self._kept[key] = kept
            self.bytes += kept.nbytes
            while self.bytes > self._most:
                _, gone = self._kept.popitem(last=False)
                self.bytes -= gone.nbytes

    def forget(self) -> None:
        """Drop all that is kept."""
        with self._lock:
            self._kept.clear()
            self.bytes = 0
