"""Work in threads beside the one that uses its results, with no more than a few results waiting."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import TypeVar

T = TypeVar("T")
MOST_THREADS = 4
"""More are not faster, for the interpreter's lock is held between kernels."""


def usable_threads() -> int:
    """Threads worth starting on this machine."""
    return min(MOST_THREADS, len(os.sched_getaffinity(0)))


def in_threads(jobs: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """Results of jobs in their order; at most ``threads`` + 1 jobs are begun and not yet taken."""
    if threads == 1:
        yield from (job() for job in jobs)
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def ahead(values: Iterator[T]) -> Iterator[T]:
    """The same values, the next ones produced by another thread while one is used."""
    waiting: deque[Future[T | None]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for job in repeat(partial(next, values, None)):
            waiting.append(pool.submit(job))
            if len(waiting) > 2:
                value = waiting.popleft().result()
                if value is None:
                    return
                yield value
