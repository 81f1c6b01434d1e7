"""The order in which samples are delivered, and who gets which of a global batch.

Legend of shape suffixes: N samples of the split; B samples of a global batch; Q requests, pairs of user and time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from laser.data.prepared import PreparedData
from laser.data.samples import Samples

USERS_AT_A_TIME = 4096


@dataclass(frozen=True, kw_only=True)
class Order:
    """Choices that change which samples meet in a step, or on which process.

    Args:
        window: shuffle within about so many samples around each sample's place in time; 0 shuffles the whole split.
        group_requests: keep samples of the same user and time together, so that their history is read and encoded once;
            requests are shuffled instead of samples.
        balance_events: give every process nearly the same number of history events of each step, not the same stretch
            of samples; requests are not divided. Reads the times of all events once at the start.
    """

    window: int = 0
    group_requests: bool = False
    balance_events: bool = False

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ValueError(f"data.order.window is {self.window}; expected 0 for all, or a number of samples")

    def identity(self) -> dict[str, Any]:
        """What must not change for a position in the order to keep its meaning, where it is not the default."""
        return {name: value for name in ("window", "group_requests") if (value := getattr(self, name))}


def permuted(count: int, order: Order, request_N: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Rows of a split in the order of an epoch.

    Args:
        count: N, samples of the split, which are ordered by time.
        order: the choices.
        request_N: number of each sample's request, with ``group_requests``.
        rng: of the epoch.

    Returns:
        uint32 or int64 [N].
    """
    rows = np.arange(count, dtype=np.uint32 if count <= 2**32 else np.int64)
    if request_N is None:
        if not order.window:
            rng.shuffle(rows)
            return rows
        return np.argsort(rows + rng.random(count) * order.window, kind="stable").astype(rows.dtype)
    first_Q = np.full(int(request_N.max()) + 1, count, dtype=np.float64)
    np.minimum.at(first_Q, request_N, rows)
    place_Q = first_Q + rng.random(len(first_Q)) * order.window if order.window else rng.permutation(len(first_Q))
    return np.lexsort((rows, request_N, place_Q[request_N])).astype(rows.dtype)


def requests(samples: Samples) -> np.ndarray:
    """Number of each sample's request, int64 [N]: equal where user and time are."""
    order = np.lexsort((samples.timestamp_N, samples.user_N))
    user, time = samples.user_N[order], samples.timestamp_N[order]
    new = np.r_[False, (user[1:] != user[:-1]) | (time[1:] != time[:-1])]
    request_N = np.empty(len(order), dtype=np.int64)
    request_N[order] = np.cumsum(new)
    return request_N


def history_lengths(data: PreparedData, samples: Samples, max_history: int) -> np.ndarray:
    """Events of each sample's history, int32 [N]; reads the times of each user's events once."""
    length_N = np.zeros(len(samples), dtype=np.int32)
    by_user = np.argsort(samples.user_N, kind="stable")
    users, starts = np.unique(samples.user_N[by_user], return_index=True)
    stops = np.r_[starts[1:], len(by_user)]
    timestamp = data.schema.timestamp.name
    for at in range(0, len(users), USERS_AT_A_TIME):
        some = slice(at, at + USERS_AT_A_TIME)
        events = data.vault.read(users[some].astype(np.int64), fields=[timestamp])
        mine = by_user[starts[at] : stops[some][-1]]
        number = np.repeat(np.arange(len(users[some])), (stops - starts)[some])
        earlier = _earlier(events.offsets, events[timestamp], number, samples.timestamp_N[mine])
        length_N[mine] = np.minimum(earlier, max_history)
    return length_N


def _earlier(off_R1: np.ndarray, time_T: np.ndarray, user_B: np.ndarray, time_B: np.ndarray) -> np.ndarray:
    """Per sample the events of its user (by number) before its time."""
    if time_T.size == 0:
        return np.zeros(len(user_B), dtype=np.int64)
    low = int(time_T.min())
    span = int(time_T.max()) - low + 2  # times of one user's keys end before those of the next begin
    key_T = np.repeat(np.arange(len(off_R1) - 1), np.diff(off_R1)) * span + (time_T.astype(np.int64) - low)
    key_B = user_B * span + np.clip(time_B.astype(np.int64) - low, 0, span - 1)
    return np.searchsorted(key_T, key_B, side="left") - off_R1[user_B]


def balanced_share(length_B: np.ndarray, request_B: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Places in a global batch that one process works on.

    Requests, the longest first, are dealt out there and back over the processes, which get the same number of requests
    (one more or less) and nearly the same number of events.

    Args:
        length_B: events of each sample's history.
        request_B: number of each sample's request; samples of a request have the same history.
        rank: of the process.
        world_size: number of processes.

    Returns:
        int64 places, ascending; all processes' together are all places, once each.
    """
    _, first_Q, request_of_B = np.unique(request_B, return_index=True, return_inverse=True)
    dealt_Q = np.lexsort((first_Q, -length_B[first_Q].astype(np.int64)))
    turn_Q = np.arange(len(dealt_Q)) % (2 * world_size)
    owner_Q = np.empty(len(dealt_Q), dtype=np.int64)
    owner_Q[dealt_Q] = np.minimum(turn_Q, 2 * world_size - 1 - turn_Q)
    return np.flatnonzero(owner_Q[request_of_B] == rank)
