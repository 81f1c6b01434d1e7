"""What a vault does with events that come late or twice: keep them, drop them, or refuse the append.

An event is late when it is older than one that its user already has. It is a duplicate when its user already has an
event equal in every field. The policies are part of the vault, so that every writer follows them.

Legend of shape suffixes: N events of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from laser.seqvault.jit import kernel
from laser.seqvault.layout import Layout
from laser.seqvault.ragged import Ragged

Policy = Literal["keep", "drop", "error"]
Events = dict[str, np.ndarray]


@dataclass(frozen=True)
class Admission:
    """Policies for late and duplicate events.

    Raises:
        ValueError: on an unknown policy.
    """

    late: Policy = "keep"
    duplicates: Policy = "keep"

    def __post_init__(self) -> None:
        for name, policy in (("late", self.late), ("duplicates", self.duplicates)):
            if policy not in get_args(Policy):
                raise ValueError(f"{name} is {policy!r}; expected one of {', '.join(get_args(Policy))}")

    def admit(self, layout: Layout, users: np.ndarray, events: Events, read: Callable[..., Ragged]) -> np.ndarray:
        """Which of N events to store, bool [N]; ``read`` is the vault's.

        Raises:
            ValueError: when an event is refused.
        """
        admitted = np.ones(len(users), np.bool_)
        if self.late == self.duplicates == "keep":
            return admitted
        time = layout.names[0]
        distinct, owner = np.unique(users, return_inverse=True)
        newest = _newest(read(distinct, last_n=1, fields=[time]), time)
        if self.duplicates != "keep":
            known = newest[owner] >= events[time]
            twice = _duplicates(layout, users, events, read(np.unique(users[known])), np.unique(users[known]))
            _settle(self.duplicates, "is a duplicate", twice, admitted, users, events[time])
        if self.late != "keep":
            late = np.zeros(len(users), np.bool_)
            _find_late(owner, events[time], admitted, newest, late)
            _settle(self.late, "is older than one its user already has", late, admitted, users, events[time])
        return admitted


def _settle(policy: str, what: str, found: np.ndarray, admitted: np.ndarray, users: np.ndarray, times: Any) -> None:
    if policy == "error" and found.any():
        first = int(np.flatnonzero(found)[0])
        raise ValueError(
            f"event {first} of the append (user {users[first]}, time {times[first]}) {what}, which this vault refuses; "
            f"remove it, or create the vault with 'keep' or 'drop'"
        )
    admitted &= ~found


def _newest(last: Ragged, time: str) -> np.ndarray:
    newest = np.full(len(last), np.iinfo(np.int64).min)
    newest[last.lengths > 0] = last[time]
    return newest


@kernel
def _find_late(
    owner: np.ndarray, times: np.ndarray, admitted: np.ndarray, newest: np.ndarray, late: np.ndarray
) -> None:
    for event in range(len(owner)):
        if admitted[event]:
            if times[event] < newest[owner[event]]:
                late[event] = True
            else:
                newest[owner[event]] = times[event]


def _rows(layout: Layout, users: np.ndarray, events: Events) -> np.ndarray:
    """User and event as one opaque value each, equal where all bytes are."""
    parts = [users.reshape(-1, 1).view(np.uint8)]
    for field in layout.fields:
        values = np.ascontiguousarray(events[field.name]).reshape(len(users), field.length)
        parts.append(values.view(np.uint8))
    joined = np.ascontiguousarray(np.concatenate(parts, axis=1))
    return joined.view(np.dtype((np.void, joined.shape[1]))).reshape(-1)


def _duplicates(layout: Layout, users: np.ndarray, events: Events, stored: Ragged, owners: np.ndarray) -> np.ndarray:
    new = _rows(layout, users, events)
    repeated = np.ones(len(new), np.bool_)
    repeated[np.unique(new, return_index=True)[1]] = False
    old = _rows(layout, np.repeat(owners, stored.lengths), stored.fields)
    return repeated | np.isin(new, old)
