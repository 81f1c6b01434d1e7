"""Synthetic histories of a feed: skewed lengths, sessions, preferred categories, snowflake-like item ids.

200,000 users at full scale, about 98 million events of 8 columns (30 bytes raw); smaller scales keep the shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from laser.seqvault import Field

FIELDS = (
    Field("time", "int64"),
    Field("item", "uint64"),
    Field("author", "uint32"),
    Field("category", "uint16"),
    Field("scenario", "uint8"),
    Field("action", "uint8"),
    Field("duration", "uint32"),
    Field("position", "uint16"),
)
READ = tuple(field.name for field in FIELDS[:6])
LAST_N = 1000
BATCH = 256
CATEGORIES = 5000
BLOCK = 1000

Events = dict[str, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """Users with their histories, generated block by block, and batches of users to ask for."""

    users: np.ndarray
    lengths: np.ndarray
    popularity: np.ndarray
    seed: int

    @classmethod
    def of(cls, num_users: int, seed: int) -> Workload:
        rng = np.random.default_rng(seed)
        # Lognormal with median 214 and mean 491, as measured feeds have it.
        lengths = np.clip(np.exp(rng.normal(np.log(214), 1.29, num_users)), 1, 10_000).astype(np.int64)
        users = rng.permutation(np.arange(num_users, dtype=np.uint64) * np.uint64(7919) + np.uint64(1 << 40))
        # The users asked for most often have long histories, though not exactly the longest.
        rank = np.argsort(np.argsort(-lengths * np.exp(rng.normal(0, 0.5, num_users))))
        popularity = 1 / (rank + 1.0)
        return cls(users, lengths, popularity / popularity.sum(), seed)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, Events]]:
        """Users of a block, their lengths, and their events one user after the other, each by time."""
        rng = np.random.default_rng(self.seed + 1)
        catalogue = Catalogue(rng, max(1000, 20 * len(self.users)))
        for start in range(0, len(self.users), BLOCK):
            lengths = self.lengths[start : start + BLOCK]
            yield self.users[start : start + BLOCK], lengths, catalogue.histories(rng, lengths)

    def catalogue(self) -> Catalogue:
        """The items of ``blocks`` with their authors and categories."""
        return Catalogue(np.random.default_rng(self.seed + 1), max(1000, 20 * len(self.users)))

    def batches(self, count: int, seed: int) -> list[np.ndarray]:
        """Batches of distinct users, zipf(1) by popularity."""
        rng = np.random.default_rng(seed)
        size = min(BATCH, len(self.users) // 4)
        return [self.users[rng.choice(len(self.users), size, replace=False, p=self.popularity)] for _ in range(count)]


class Catalogue:
    """Items, each with an author and a category."""

    def __init__(self, rng: np.random.Generator, items: int) -> None:
        created = np.sort(rng.integers(1_600_000_000_000, 1_700_000_000_000, items)).astype(np.uint64)
        self.items = (created << np.uint64(22)) | rng.integers(0, 1 << 22, items).astype(np.uint64)
        authors = rng.integers(0, 2**32, max(100, items // 10), dtype=np.uint32)
        self.authors = authors[(rng.zipf(1.3, items) - 1) % len(authors)]
        self.categories = rng.integers(0, CATEGORIES, items).astype(np.uint16)
        self.by_category = np.argsort(self.categories, kind="stable")
        self.starts = np.searchsorted(self.categories[self.by_category], np.arange(CATEGORIES + 1))

    def histories(self, rng: np.random.Generator, lengths: np.ndarray) -> Events:
        total, owner = int(lengths.sum()), np.repeat(np.arange(len(lengths)), lengths)
        preferred = rng.integers(0, CATEGORIES, (len(lengths), 12))
        category = preferred[owner, rng.integers(0, 12, total)]
        low, high = self.starts[category], self.starts[category + 1]
        within = low + ((high - low) * rng.random(total) ** 3).astype(np.int64)
        item = self.by_category[np.minimum(within, len(self.by_category) - 1)]
        pause = rng.random(total) < 0.05  # between sessions
        gap = np.where(pause, rng.exponential(40_000, total), rng.exponential(30, total)).astype(np.int64) + 1
        passed = np.cumsum(gap)
        first = np.cumsum(lengths) - lengths
        return {
            "time": 1_650_000_000 + passed - np.repeat(passed[first], lengths),
            "item": self.items[item],
            "author": self.authors[item],
            "category": self.categories[item],
            "scenario": rng.choice(8, total, p=[0.5, 0.2, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02]).astype(np.uint8),
            "action": rng.choice(6, total, p=[0.7, 0.1, 0.1, 0.05, 0.03, 0.02]).astype(np.uint8),
            "duration": rng.exponential(20_000, total).astype(np.uint32),
            "position": rng.geometric(0.05, total).astype(np.uint16),
        }


GLOBO_COLUMNS = {
    "time": "click_timestamp",
    "item": "click_article_id",
    "author": "click_region",
    "category": "click_country",
    "scenario": "click_environment",
    "action": "click_deviceGroup",
    "duration": "click_os",
    "position": "click_referrer_type",
}


@dataclass(frozen=True)
class Recorded:
    """Real clicks (Globo.com, one row a click) in the columns of the synthetic workload; all users equally popular."""

    users: np.ndarray
    lengths: np.ndarray
    events: Events
    seed: int

    @classmethod
    def of(cls, path: Path, seed: int) -> Recorded:
        table = pq.read_table(path).sort_by([("user_id", "ascending"), ("click_timestamp", "ascending")])
        users, lengths = np.unique(table["user_id"].to_numpy(), return_counts=True)
        columns = {field.name: table[GLOBO_COLUMNS[field.name]].to_numpy().astype(field.dtype) for field in FIELDS}
        return cls(users.astype(np.uint64), lengths, columns, seed)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, Events]]:
        """As ``Workload.blocks``."""
        stop = 0
        for first in range(0, len(self.users), BLOCK):
            lengths = self.lengths[first : first + BLOCK]
            start, stop = stop, stop + int(lengths.sum())
            yield self.users[first : first + BLOCK], lengths, {n: v[start:stop] for n, v in self.events.items()}

    def batches(self, count: int, seed: int) -> list[np.ndarray]:
        """As ``Workload.batches``."""
        rng = np.random.default_rng(seed)
        return [rng.choice(self.users, BATCH, replace=False) for _ in range(count)]
