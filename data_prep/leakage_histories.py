"""Part of the leakage check: every sample against the whole history of its user.

Shape suffixes: U users, S samples and T events of a piece, packed by user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from data_prep.histories import runs
from data_prep.leakage_findings import Findings
from data_prep.leakage_kernels import CROSSED, EARLIER, LATER, MIXED, TALLIES, UNORDERED, compare
from data_prep.leakage_samples import Gathered
from data_prep.recipe import SPLITS
from laser.schema import Schema
from laser.seqvault import SeqVault

ROWS_AT_ONCE = 1 << 21
"""Events and samples of whole users held in memory at a time; a user with more is held whole."""
CUT_SAMPLES = 50_000
"""Samples, evenly spread, whose history is read as training reads it."""
CUT_EVENTS = 10_000
"""Newest events that are read so, for users with millions; training asks for fewer."""


class Comparison:
    """Takes gathered samples, all of a user at once.

    Args:
        vault: with the histories.
        schema: of the data set.
        report: content of its ``report.json``.
        samples: that will be seen.
        found: where problems are noted.
    """

    def __init__(self, vault: SeqVault, schema: Schema, report: dict[str, Any], samples: int, found: Findings) -> None:
        self.vault, self.report, self.found = vault, report, found
        self.time, self.item = schema.timestamp.name, schema.item.name
        self.stride = max(1, samples // CUT_SAMPLES)
        # Reports of before ids could share codes do not say which codes stand for one item.
        last = (schema.item.cardinality or 1) - 1
        self.own_codes = report.get("ids", {}).get(schema.item.name, {}).get("own", last)
        self._tally = np.zeros(TALLIES, np.int64)
        self._repeated = 0

    def see(self, gathered: Gathered, advance: Callable[[int], None]) -> None:
        """Compare samples with their histories."""
        samples = np.diff(gathered.starts)
        users = np.flatnonzero(samples)
        sizes = samples[users] + self.vault.lengths(users + gathered.first)
        for run in runs(sizes, ROWS_AT_ONCE):
            self._see_users(gathered, users[run], advance)

    def _see_users(self, gathered: Gathered, users_U: np.ndarray, advance: Callable[[int], None]) -> None:
        begin, end = gathered.starts[users_U[0]], gathered.starts[users_U[-1] + 1]
        starts = np.append(gathered.starts[users_U], end) - begin
        item_S, time_S, split_S = (part[begin:end] for part in (gathered.item, gathered.time, gathered.split))
        history = self.vault.read(users_U + gathered.first, fields=[self.time, self.item])
        times_T, items_T = history[self.time].astype(np.int64), history[self.item].astype(np.int64)
        earlier_S, own_S = np.empty(len(time_S), np.int64), np.empty(len(time_S), np.bool_)
        doubtful_S = np.zeros(len(time_S), np.bool_)
        compare(
            *(starts, item_S, time_S, split_S, history.offsets, times_T, items_T),
            *(earlier_S, own_S, doubtful_S, self._tally),
        )
        for number, split in enumerate(SPLITS):
            inside = split_S == number
            self.found.own_events[split] += int(own_S[inside].sum())
            counts = np.bincount(earlier_S[inside], minlength=1)
            self.found.lengths[split] = _sum_of_counts(self.found.lengths[split], counts)
        user_S = np.repeat(users_U + gathered.first, np.diff(starts))
        # Other codes stand for several items.
        doubtful_S &= (item_S > 0) & (item_S <= self.own_codes)
        self._repeated += _in_two_splits(*(part[doubtful_S] for part in (user_S, time_S, item_S, split_S)))
        first = -self.found.samples % self.stride
        self.found.samples += len(time_S)
        for run in runs(np.minimum(earlier_S[first :: self.stride], CUT_EVENTS), ROWS_AT_ONCE):
            chosen = np.arange(first, len(time_S), self.stride)[run]
            self._cut(user_S[chosen], time_S[chosen], np.minimum(earlier_S[chosen], CUT_EVENTS))
        advance(len(time_S))

    def _cut(self, user: np.ndarray, time: np.ndarray, wanted: np.ndarray) -> None:
        """Read histories of samples as training does, and compare with how many events there should be."""
        self.found.cuts += len(user)
        cut = self.vault.read(user, before=time, last_n=CUT_EVENTS, fields=[self.time])
        future = int((cut[self.time] >= np.repeat(time, cut.lengths)).sum())
        self.found.add(future > 0, f"histories hold {future} events at or after their sample's time")
        self.found.add((cut.lengths < wanted).any(), "histories lack events that lie before their sample's time")

    def judge(self) -> None:
        """Note what is wrong with the samples seen."""
        found, split = self.found, self.report["split"]
        found.add(self._tally[UNORDERED] > 0, "histories are not in the order of time")
        if split["way"] == "per_user":
            for pair, (one, other) in enumerate(zip(EARLIER, LATER, strict=True)):
                crossed = int(self._tally[CROSSED + pair])
                told = f"{SPLITS[one]} samples lie after {SPLITS[other]} samples for {crossed} users"
                found.add(crossed > 0, told)
        mixed = int(self._tally[MIXED]) if split["users_disjoint"] else 0
        found.add(mixed > 0, f"{mixed} users have samples in more than one split")
        told = f"{self._repeated} samples (same user, item and time) stand in two splits"
        one = "row_number() OVER (PARTITION BY user, item, time ORDER BY log_row) = 1"
        found.add(self._repeated > 0, f"{told}: let `target.where` keep one, such as {one}")
        for name in SPLITS:
            lacking = self.report["samples"][name]["with_own_event"] - found.own_events[name]
            moved = f"{lacking} {name} samples lack their own event at their own time: it was moved in time or lost"
            found.add(lacking > 0, moved)


def _in_two_splits(user: np.ndarray, time: np.ndarray, item: np.ndarray, split: np.ndarray) -> int:
    """How many (user, time, item) stand in more than one split."""
    order = np.lexsort((item, time, user))
    user, time, item, split = user[order], time[order], item[order], split[order]
    same = (user[1:] == user[:-1]) & (time[1:] == time[:-1]) & (item[1:] == item[:-1])
    key = np.concatenate([[0], np.cumsum(~same)])[: len(user)]
    across = key[1:][same & (split[1:] != split[:-1])]
    return len(np.unique(across))


def _sum_of_counts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    total = np.zeros(max(len(first), len(second)), np.int64)
    total[: len(first)] += first
    total[: len(second)] += second
    return total
