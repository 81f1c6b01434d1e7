"""The events with which a follower marks its appends: of a user that is nobody (docs/vault_service.md).

A vault keeps them like other events, and returns them to who asks for their user; its list of users and its counts of
users and events leave them out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laser.seqvault.index import NO_PLACE, Index, find_row
from laser.seqvault.layout import Layout
from laser.seqvault.lengths import history_lengths
from laser.seqvault.tail import Tail, find_tail

MARK_USER = 2**64 - 1
"""The user whose events are marks."""
FIRST_MARK = 2**62
"""Timestamp of mark 0: above all times, so that no retention by age removes marks, and a user is known by its newest
event to be nobody."""


def mark_event(layout: Layout, number: int) -> dict[str, Any]:
    """The event that marks a batch as stored: its timestamp is what counts, the other fields are 0."""
    event = {field.name: np.zeros((1, *field.shape), field.dtype) for field in layout.fields}
    event[layout.names[0]][0] = FIRST_MARK + number
    return event


def mark_count(index: Index, tail: Tail) -> int:
    """Marks in a vault; 0 where their user is somebody, whose newest event has an earlier time."""
    user, newest = np.uint64(MARK_USER), -1
    row, recent = find_row(index.table, index.rows, user), tail.slots[find_tail(tail.slots, user)]
    if row >= 0 and index.rows[row]["place"] != NO_PLACE:
        newest = int(index.rows[row]["last"])
    if recent["count"] > 0:
        newest = max(newest, int(recent["last"]))
    return int(history_lengths(index, tail, np.array([user]))[0]) if newest >= FIRST_MARK else 0
