"""Hit rates of eviction policies: the store's own cache (S3-FIFO) against LRU and CLOCK, with and without scans.

    python benchmarks/seqvault/cache_policies.py

Users are asked for by zipf(1.0); of a trace with scans, 30 % of the requests go through all users one after the other.
All entries have the same size. Writes a Markdown table to standard output.
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from laser.seqvault import Field
from laser.seqvault.cache import OVERHEAD, ChunkCache, Entry
from laser.seqvault.layout import Layout

SHARES = (0.01, 0.05, 0.1, 0.25)
SCANS = (0.0, 0.3)


def trace(users: int, requests: int, scans: float, rng: np.random.Generator) -> list[int]:
    popularity = 1 / np.arange(1, users + 1)
    asked = rng.choice(users, requests, p=popularity / popularity.sum())
    scanning = rng.random(requests) < scans
    # Popular users are spread over the order in which a scan meets them.
    asked = rng.permutation(users)[asked]
    asked[scanning] = np.arange(scanning.sum()) % users
    return asked.tolist()


def s3_fifo(asked: list[int], capacity: int) -> int:
    cache, hits, nothing = ChunkCache(capacity * OVERHEAD, Layout((Field("time", "int64"),))), 0, np.empty(0, np.uint8)
    rows = cache.serving(False, {})
    for user in asked:
        (found,) = cache.find([user], rows)
        if found is None:
            cache.add([user], rows, [Entry(nothing)])
        else:
            hits += 1
    return hits


def lru(asked: list[int], capacity: int) -> int:
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for user in asked:
        if user in held:
            held.move_to_end(user)
            hits += 1
        else:
            held[user] = None
            if len(held) > capacity:
                held.popitem(last=False)
    return hits


def clock(asked: list[int], capacity: int) -> int:
    place: dict[int, int] = {}
    users, used, hand, hits = [-1] * capacity, [False] * capacity, 0, 0
    for user in asked:
        if user in place:
            used[place[user]] = True
            hits += 1
            continue
        while used[hand]:
            used[hand] = False
            hand = (hand + 1) % capacity
        place.pop(users[hand], None)
        users[hand], place[user] = user, hand
        hand = (hand + 1) % capacity
    return hits


POLICIES: dict[str, Callable[[list[int], int], int]] = {"LRU": lru, "CLOCK": clock, "S3-FIFO": s3_fifo}


def main() -> None:
    """Print hit rates, and microseconds per request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"| scans | capacity | {' | '.join(POLICIES)} |\n|---|---|{'---|' * len(POLICIES)}")
    for scans in SCANS:
        asked = trace(options.users, options.requests, scans, np.random.default_rng(options.seed))
        for share in SHARES:
            cells = []
            for policy in POLICIES.values():
                start = time.perf_counter()
                hits = policy(asked, int(share * options.users))
                microseconds = (time.perf_counter() - start) / len(asked) * 1e6
                cells.append(f"{hits / len(asked):.3f} ({microseconds:.1f} us)")
            print(f"| {scans:.0%} | {share:.0%} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
