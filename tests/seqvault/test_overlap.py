"""Work in threads comes back in order, a few results ahead, and with its errors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from laser.seqvault.overlap import ahead, in_threads


@pytest.mark.parametrize("threads", [1, 3])
def test_results_keep_their_order_and_few_wait(threads: int) -> None:
    begun: list[int] = []

    def job(number: int) -> int:
        begun.append(number)
        time.sleep(0.003 * (number % 3))
        return number

    for taken, number in enumerate(in_threads((partial(job, number) for number in range(20)), threads)):
        assert taken == number
        assert len(begun) <= taken + 1 + threads


def test_errors_reach_the_one_who_waits() -> None:
    def values() -> Iterator[int]:
        yield 1
        raise ValueError("no second")

    found = ahead(values())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no second"):
        next(found)
    assert list(ahead(iter(()))) == []
    assert list(ahead(iter(range(7)))) == list(range(7))
    with pytest.raises(ZeroDivisionError):
        list(in_threads([lambda: 1, lambda: 1 // 0], 2))
