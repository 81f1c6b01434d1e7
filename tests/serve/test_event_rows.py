"""What is kept of a user is taken over exactly where it is still true."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laser.serve.event_rows import EventRows

EVENT = st.tuples(st.integers(0, 5), st.integers(0, 2))
HISTORIES = st.lists(st.lists(EVENT, min_size=1, max_size=8), min_size=1, max_size=6)


def arrays(events: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    ordered = sorted(events, key=lambda event: event[0])
    return {"time": np.array([e[0] for e in ordered]), "item": np.array([e[1] for e in ordered])}


def compute(events: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(events["item"] * 10.0)[:, None]


@given(HISTORIES, st.sampled_from([0, 60, 10_000]))
@settings(max_examples=150, deadline=None)
def test_rows_are_those_of_the_events(histories, most_bytes):
    rows = EventRows(compute, "time", most_bytes)
    for number, events in enumerate(map(arrays, histories)):
        assert torch.equal(rows.of(number % 2, events), compute(events))
        assert rows.bytes <= most_bytes


def test_only_new_events_are_computed():
    asked = []
    rows = EventRows(lambda events: (asked.append(len(events["time"])), compute(events))[1], "time", 10_000)
    history = arrays([(time, time % 3) for time in range(20)])
    newest = [
        {name: values[first:last] for name, values in history.items()} for first, last in [(0, 10), (2, 12), (3, 9)]
    ]
    for events in newest:
        assert torch.equal(rows.of(1, events), compute(events))
    assert asked == [10, 2]
    late = {"time": np.r_[history["time"][:5], 4], "item": np.r_[history["item"][:5], 2]}
    assert torch.equal(rows.of(1, late), compute(late))
    assert (rows.computed, rows.reused) == (10 + 2 + 6, 8 + 6)


def test_the_least_recently_used_user_leaves():
    rows = EventRows(compute, "time", 3 * 24 * 4)
    histories = [arrays([(user, user)] * 4) for user in range(4)]
    for user in (0, 1, 2, 0, 3):
        rows.of(user, histories[user])
    before = rows.computed
    rows.of(0, histories[0])
    assert rows.computed == before
    rows.of(1, histories[1])
    assert rows.computed == before + 4


def test_what_was_read_for_others_is_not_held():
    """Histories of many requests are read into one piece of memory."""
    rows = EventRows(compute, "time", 10_000)
    read = {"time": np.arange(1000), "item": np.zeros(1000, int)}
    gone = [weakref.ref(values) for values in read.values()]
    for events in ({name: values[:5] for name, values in read.items()}, {n: v[1:4] for n, v in read.items()}):
        rows.of(1, events)
    del read, events
    assert [ref() for ref in gone] == [None, None]
    assert (rows.reused, rows.computed) == (3, 5)
