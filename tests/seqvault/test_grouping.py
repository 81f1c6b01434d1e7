"""Grouping events by user equals a stable sort by user, then time."""

from __future__ import annotations

import numpy as np
import pytest

from laser.seqvault.grouping import group_by_user


@pytest.mark.parametrize(
    ("size", "users", "times"), [(0, 1, 1), (1, 1, 1), (5000, 1, 9), (5000, 40, 9), (20000, 15000, 9)]
)
@pytest.mark.parametrize("in_order", [True, False])
def test_equals_a_stable_sort(rng: np.random.Generator, size: int, users: int, times: int, in_order: bool) -> None:
    users_N = rng.integers(0, users, size).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    times_N = rng.integers(-times, times, size)
    times_N = np.sort(times_N) if in_order else times_N
    order, distinct, bounds = group_by_user(users_N, times_N)
    np.testing.assert_array_equal(order, np.lexsort((times_N, users_N)))
    np.testing.assert_array_equal(distinct, np.unique(users_N))
    np.testing.assert_array_equal(np.repeat(distinct, np.diff(bounds)), np.sort(users_N))
