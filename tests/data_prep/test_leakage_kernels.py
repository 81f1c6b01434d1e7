"""The compiled loops of the leakage check against plain Python, with many ties and samples in any order."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.histories import runs
from data_prep.leakage_kernels import CROSSED, EARLIER, LATER, MIXED, TALLIES, UNORDERED, compare, place_samples


@pytest.mark.parametrize("ordered", [True, False])
def test_compare(ordered):
    random = np.random.default_rng(5)
    users = 60
    counts, lengths = random.integers(0, 12, users), random.integers(0, 25, users)
    starts, offsets = (np.concatenate([[0], np.cumsum(sizes)]) for sizes in (counts, lengths))
    time, item = random.integers(0, 12, starts[-1]), random.integers(1, 6, starts[-1]).astype(np.uint32)
    split = random.integers(0, 3, starts[-1]).astype(np.uint8)
    times, items = random.integers(0, 12, offsets[-1]), random.integers(1, 6, offsets[-1])
    for u in range(users):
        times[offsets[u] : offsets[u + 1]].sort()
        if ordered:
            time[starts[u] : starts[u + 1]].sort()
    earlier, own = np.empty(len(time), np.int64), np.empty(len(time), np.bool_)
    doubtful, tally = np.zeros(len(time), np.bool_), np.zeros(TALLIES, np.int64)
    events = items.copy()
    compare(starts, item, time, split, offsets, times, events, earlier, own, doubtful, tally)
    mixed, crossed = 0, np.zeros(3, np.int64)
    for u in range(users):
        mine, seen = slice(starts[u], starts[u + 1]), slice(offsets[u], offsets[u + 1])
        history = list(zip(times[seen], items[seen], strict=True))
        spans = {k: time[mine][split[mine] == k] for k in set(split[mine].tolist())}
        mixed += len(spans) > 1
        for pair, (one, other) in enumerate(zip(EARLIER, LATER, strict=True)):
            crossed[pair] += one in spans and other in spans and spans[one].max() > spans[other].min()
        for s in range(starts[u], starts[u + 1]):
            assert earlier[s] == sum(moment < time[s] for moment, _ in history)
            assert own[s] == ((time[s], item[s]) in history)
            others = [span for k, span in spans.items() if k != split[s]]
            assert doubtful[s] == any(span.min() <= time[s] <= span.max() for span in others)
    assert (tally[MIXED], tally[UNORDERED]) == (mixed, 0)
    assert tally[CROSSED:].tolist() == crossed.tolist()
    assert mixed > 0 < crossed.min()


def test_histories_out_of_order_are_counted():
    tally, nothing = np.zeros(TALLIES, np.int64), np.zeros(0, np.int64)
    times, items = np.array([1, 2, 2, 1, 5, 4]), np.arange(6)
    starts, offsets = np.zeros(3, np.int64), np.array([0, 4, 6])
    empty = nothing.astype(np.uint32), nothing, nothing.astype(np.uint8)
    compare(starts, *empty, offsets, times, items, nothing, nothing > 0, nothing > 0, tally)
    assert tally[UNORDERED] == 2


def test_samples_are_placed_by_user():
    user, following = np.array([3, 0, 1, 3, 9, -1, 0]), np.array([0, 2, 3, 3])
    out = np.zeros(5, np.uint32), np.zeros(5, np.int64), np.zeros(5, np.uint8)
    place_samples(user, np.arange(7) + 10, np.arange(7) + 20, 2, following, *out)
    assert out[0].tolist() == [11, 16, 12, 10, 13]
    assert out[1].tolist() == [21, 26, 22, 20, 23]
    assert (following.tolist(), out[2].tolist()) == ([2, 3, 3, 5], [2] * 5)


def test_runs():
    assert list(runs(np.array([3, 3, 9, 1, 1]), 6)) == [slice(0, 2), slice(2, 3), slice(3, 5)]
    assert list(runs(np.array([], np.int64), 6)) == []
