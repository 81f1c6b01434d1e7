"""Sorting events by user, then time, then arrival, without comparing users: count, place, and sort what is unsorted.

Logs mostly arrive in order of time, so that placing each user's events side by side leaves little to sort.

Legend of shape suffixes: N events; U distinct users.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laser.seqvault.index import GOLDEN
from laser.seqvault.jit import kernel


def group_by_user(users: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order events by (user, time, arrival).

    Args:
        users: uint64 [N].
        times: int64 [N].

    Returns:
        Positions int64 [N] in that order; the distinct users, ascending, uint64 [U]; and where each one's positions
        begin and end, int64 [U + 1].
    """
    owner, bits, position, count = np.empty(len(users), np.int32), 12, 0, 0
    distinct, table = np.empty(1 << (bits - 1), np.uint64), np.full(1 << bits, -1, np.int32)
    while True:
        position, count = _number_users(users, position, distinct, count, table, bits, owner)
        if position == len(users):
            break
        bits += 2
        distinct = np.concatenate([distinct, np.empty((1 << (bits - 1)) - len(distinct), np.uint64)])
        table = np.full(1 << bits, -1, np.int32)
        _fill(distinct, count, table, bits)
    ascending = np.argsort(distinct[:count])
    rank = np.empty(count, np.int32)
    rank[ascending] = np.arange(count, dtype=np.int32)
    bounds, order = np.zeros(count + 1, np.int64), np.empty(len(users), np.int64)
    _place(owner, rank, times, bounds, order)
    return order, distinct[ascending], bounds


@kernel
def _slot(user: Any, bits: int) -> Any:
    return np.int64((user * GOLDEN) >> np.uint64(64 - bits))


@kernel
def _fill(distinct: np.ndarray, count: int, table: np.ndarray, bits: int) -> None:
    for number in range(count):
        slot = _slot(distinct[number], bits)
        while table[slot] >= 0:
            slot = (slot + 1) & (len(table) - 1)
        table[slot] = number


@kernel
def _number_users(
    users: np.ndarray, begin: int, distinct: np.ndarray, count: int, table: np.ndarray, bits: int, owner: np.ndarray
) -> Any:
    """Number users in order of appearance from ``begin`` on; returns where it stopped for lack of room, and a count."""
    for position in range(begin, len(users)):
        user = users[position]
        slot = _slot(user, bits)
        while table[slot] >= 0 and distinct[table[slot]] != user:
            slot = (slot + 1) & (len(table) - 1)
        if table[slot] < 0:
            if count == len(distinct):
                return position, count
            distinct[count] = user
            table[slot] = count
            count += 1
        owner[position] = table[slot]
    return len(users), count


@kernel
def _place(owner: np.ndarray, rank: np.ndarray, times: np.ndarray, bounds: np.ndarray, order: np.ndarray) -> None:
    """Fill ``order`` and ``bounds`` from the number of each event's user and the rank of each number."""
    for position in range(len(owner)):
        bounds[rank[owner[position]] + 1] += 1
    for user in range(len(rank)):
        bounds[user + 1] += bounds[user]
    free = bounds[:-1].copy()
    for position in range(len(owner)):
        user = rank[owner[position]]
        order[free[user]] = position
        free[user] += 1
    for user in range(len(rank)):
        start, stop = bounds[user], bounds[user + 1]
        for at in range(start + 1, stop):
            if times[order[at]] < times[order[at - 1]]:
                own = order[start:stop].copy()
                order[start:stop] = own[np.argsort(times[own], kind="mergesort")]
                break


@kernel
def merge_by_time(
    first_off: np.ndarray, first: np.ndarray, second_off: np.ndarray, second: np.ndarray, order: np.ndarray
) -> None:
    """Merge two lists of each user, ascending by time; of equal times those of the first list come first.

    Args:
        first_off: int64 [U + 1], where each user's times begin and end in ``first``.
        first: int64, times.
        second_off: int64 [U + 1], the same for ``second``.
        second: int64, times.
        order: int64, filled with positions in ``first`` and, behind these, ``second``.
    """
    at, behind = 0, len(first)
    for user in range(len(first_off) - 1):
        i, j = first_off[user], second_off[user]
        end, stop = first_off[user + 1], second_off[user + 1]
        while i < end and j < stop:
            if first[i] <= second[j]:
                order[at] = i
                i += 1
            else:
                order[at] = behind + j
                j += 1
            at += 1
        while i < end:
            order[at] = i
            i += 1
            at += 1
        while j < stop:
            order[at] = behind + j
            j += 1
            at += 1
