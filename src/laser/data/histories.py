"""Histories of a batch as slices of flat arrays: where each begins, and where its events go in the batch.

Two requests of one user, the newest two events before each::

    item        [ a  b  c  d | e  f  g ]    all events in memory, user after user
    begin_U     [    1  2 ]                 [b c] and [c d]
    off_U1      [ 0  2  4 ]                 their places in the batch: b c c d

So a batch's compiled code takes events from where they are, and they are copied once, to where they are delivered.

Legend of shape suffixes: H users of the store; U requests (a user and a time each); N events in memory; T events of all
requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from laser.seqvault import SeqVault
from laser.seqvault.jit import kernel
from laser.seqvault.ragged import Ragged

EVENTS_AT_A_TIME = 1 << 20
"""So many events, encoded, are in memory beside the decoded ones while these are made; more only of a single user."""


@dataclass(frozen=True)
class Slices:
    """Histories of U requests, each a part of the same arrays.

    Args:
        fields: per field N values, contiguous, [N] or [N, K]; those of a history are next to each other, oldest first.
        begin_U: int64, the first event of each history in them.
        off_U1: int64 [U + 1], where each history begins when all T events are put one after another.
    """

    fields: Mapping[str, np.ndarray]
    begin_U: np.ndarray
    off_U1: np.ndarray

    @classmethod
    def of(cls, events: Ragged) -> Self:
        """Histories that are one after another already."""
        fields = {name: np.ascontiguousarray(values) for name, values in events.fields.items()}
        off_U1 = np.ascontiguousarray(events.offsets, np.int64)
        return cls(fields, off_U1[:-1], off_U1)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.fields[name]

    def packed(self, name: str) -> np.ndarray:
        """A copy of one field, [T] or [T, K]."""
        length_U = np.diff(self.off_U1)
        from_T = np.repeat(self.begin_U - self.off_U1[:-1], length_U) + np.arange(self.off_U1[-1])
        return self.fields[name].take(from_T, axis=0)


class Histories:
    """All histories of a store, decoded, in memory.

    Args:
        vault: the store, which nobody changes meanwhile.

    Raises:
        ValueError: when stored data is damaged (with file and offset).
        OSError: when a file cannot be read.
    """

    def __init__(self, vault: SeqVault) -> None:
        layout = vault.layout
        self._user_H = vault.users()
        self._off_H1 = np.concatenate([[0], np.cumsum(vault.lengths(self._user_H))]).astype(np.int64)
        count = int(self._off_H1[-1])
        self._fields = {field.name: np.empty((count, *field.shape), field.dtype) for field in layout.fields}
        self._time_N = self._fields[layout.fields[0].name]
        first = 0
        while first < len(self._user_H):
            most = self._off_H1[first] + EVENTS_AT_A_TIME
            stop = max(first + 1, int(np.searchsorted(self._off_H1, most, side="right")) - 1)
            events = slice(self._off_H1[first], self._off_H1[stop])
            out = {name: values[events] for name, values in self._fields.items()}
            vault.read_into(self._user_H[first:stop], out, align="packed")
            first = stop

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return sum(values.nbytes for values in (self._user_H, self._off_H1, *self._fields.values()))

    @staticmethod
    def nbytes_of(vault: SeqVault) -> int:
        """Memory that those of a store will take, without reading them."""
        stats = vault.stats()
        event = sum(np.dtype(field.dtype).itemsize * field.length for field in vault.layout.fields)
        return int(stats["events"] * event + stats["users"] * 16 + 8)

    def before(self, user_U: np.ndarray, time_U: np.ndarray, last_n: int | None = None) -> Slices:
        """The newest events of each user that are older than a time.

        Args:
            user_U: int64; a user that is not in the store has no events.
            time_U: int64 ticks; only strictly earlier events count.
            last_n: at most so many; ``None`` for all.
        """
        most = len(self._time_N) if last_n is None else last_n
        begin_U, off_U1 = np.empty(len(user_U), np.int64), np.empty(len(user_U) + 1, np.int64)
        _find(self._user_H, self._off_H1, self._time_N, user_U, time_U, most, begin_U, off_U1)
        return Slices(self._fields, begin_U, off_U1)


@kernel
def _find(user_H, off_H1, time_N, user_U, time_U, most, begin_U, off_U1):
    """Fill ``begin_U`` and ``off_U1``."""
    off_U1[0] = 0
    for request in range(len(user_U)):
        user = np.uint64(user_U[request])
        row = _below(user_H, 0, len(user_H), user)
        first, stop = 0, 0
        if row < len(user_H) and user_H[row] == user:
            first = off_H1[row]
            stop = _below(time_N, first, off_H1[row + 1], time_U[request])
        length = min(stop - first, most)
        begin_U[request] = stop - length
        off_U1[request + 1] = off_U1[request] + length


@kernel
def _below(values, first, stop, limit):
    """End of the ascending ``values[first:stop]`` that are below ``limit``."""
    while first < stop:
        middle = (first + stop) // 2
        if values[middle] < limit:
            first = middle + 1
        else:
            stop = middle
    return first
