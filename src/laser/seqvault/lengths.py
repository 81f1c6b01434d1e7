"""How many events users have, without reading any.

Legend of shape suffixes: U users.
"""

from __future__ import annotations

import numpy as np

from laser.seqvault.index import NO_PLACE, Index, count_of, find_row, next_older
from laser.seqvault.jit import kernel
from laser.seqvault.tail import EMPTY, Tail, find_tail


def history_lengths(index: Index, tail: Tail | None, users: np.ndarray) -> np.ndarray:
    """Events of each of uint64 [U] users in segments and, if given, in recent memory; int64 [U]."""
    lengths = np.zeros(len(users), np.int64)
    _count_stored(users, index.table, index.rows, index.chunks, lengths)
    if tail is not None and tail.size:
        _count_recent(users, tail.slots, lengths)
    return lengths


@kernel
def _count_stored(
    users: np.ndarray, table: np.ndarray, rows: np.ndarray, chunks: np.ndarray, lengths: np.ndarray
) -> None:
    for position in range(len(users)):
        row = find_row(table, rows, users[position])
        if row < 0:
            continue
        place, record = rows[row].place, rows[row].older
        while place != NO_PLACE:
            lengths[position] += count_of(place)
            place, _, record = next_older(chunks, record)


@kernel
def _count_recent(users: np.ndarray, slots: np.ndarray, lengths: np.ndarray) -> None:
    for position in range(len(users)):
        slot = find_tail(slots, users[position])
        if slots[slot].state != EMPTY:
            lengths[position] += slots[slot].count
