"""Random operations in random order against a dictionary of lists, with reopening and compaction between any two."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from laser.seqvault import SeqVault
from tests.seqvault.conftest import FIELDS, Model, assert_history, make_events

USERS = np.array([0, 1, 2, 2**63, 2**64 - 1], np.uint64)
IDS = ["item", "category", "delta", "tags"]
TIMES = st.integers(0, 40)
CACHE = 60_000
"""Bytes of the cache: some of the chunks fit, not all."""
CATEGORIES = st.integers(0, 10)
DELTAS = st.integers(-600, 600) | st.lists(st.integers(-500, 500), min_size=50)


class VaultMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.folder = Path(tempfile.mkdtemp())
        self.coded = self.rng.choice(IDS, 2, replace=False).tolist()
        self.vault = SeqVault.create(
            self.folder / "vault", FIELDS, dictionaries=self.coded, sync="none", tail_bytes=3000, cache_bytes=CACHE
        )
        self.reader = SeqVault.open(self.folder / "vault", cache_bytes=CACHE)
        self.model = Model()

    @rule(count=st.integers(0, 60), low=TIMES, ordered=st.booleans())
    def append(self, count: int, low: int, ordered: bool) -> None:
        users, events = self.rng.choice(USERS, count), make_events(self.rng, count, low, low + 8)
        if ordered:
            events["time"] = np.sort(events["time"]) + 100 * len(self.model.histories.get(0, []))
        self.vault.append(users, events)
        self.model.append(users, events)

    @rule(count=st.integers(990, 2010), user=st.sampled_from(USERS.tolist()))
    def append_many_to_one(self, count: int, user: int) -> None:
        events = make_events(self.rng, count, 0, 50)
        self.vault.append(np.full(count, user, np.uint64), events)
        self.model.append(np.full(count, user, np.uint64), events)

    @rule(user=st.sampled_from(USERS.tolist()))
    def delete(self, user: int) -> None:
        assert self.vault.delete_user(user) == bool(self.model.histories.pop(user, []))

    @rule()
    def checkpoint(self) -> None:
        self.vault.checkpoint()

    @rule()
    def compact(self) -> None:
        self.vault.compact()

    @rule()
    def reopen(self) -> None:
        self.vault.close()
        self.vault = SeqVault.open(self.folder / "vault", "a", sync="none", tail_bytes=3000, cache_bytes=CACHE)

    @rule()
    def lose_the_index(self) -> None:
        self.vault.close()
        for file in (self.folder / "vault").glob("*.idx"):
            file.write_bytes(file.read_bytes()[:-1])
        self.vault = SeqVault.open(self.folder / "vault", "a", sync="none", tail_bytes=3000, cache_bytes=CACHE)

    @rule(moment=st.none() | TIMES, last_n=st.none() | st.integers(0, 30) | st.integers(990, 1010))
    def read(self, moment: int | None, last_n: int | None) -> None:
        users = self.rng.choice(np.append(USERS, np.uint64(99)), 7)
        self.model.compare(self.vault, users, moment, last_n)
        self.reader.refresh()
        self.model.compare(self.reader, users, moment, last_n)
        raw = self.vault.read(users, before=moment, last_n=last_n)
        for vault in (self.vault, self.reader):
            found = vault.read(users, before=moment, last_n=last_n, ids="codes")
            for name in self.coded:
                np.testing.assert_array_equal(self.vault.dictionary(name)[found[name]], raw[name])

    @rule(
        moment=st.none() | TIMES,
        last_n=st.none() | st.integers(0, 30) | st.integers(990, 1010),
        where=st.fixed_dictionaries({}, optional={"category": st.lists(CATEGORIES), "delta": DELTAS}),
    )
    def read_where(self, moment: int | None, last_n: int | None, where: dict) -> None:
        users = self.rng.choice(USERS, 7)
        cuts = None if moment is None else self.rng.integers(0, moment + 1, 7)
        self.reader.refresh()
        for vault in (self.vault, self.reader):
            found = vault.read(users, before=cuts, last_n=last_n, where=where)
            coded = vault.read(users, before=cuts, last_n=last_n, where=where, fields=self.coded, ids="codes")
            for name in self.coded:
                np.testing.assert_array_equal(vault.dictionary(name)[coded[name]], found[name])
        for index, user in enumerate(users):
            history = self.model.read(user, None if cuts is None else cuts[index])
            kept = [event for event in history if all(event[n] in np.atleast_1d(v) for n, v in where.items())]
            assert_history(found, index, kept if last_n is None else kept[max(0, len(kept) - last_n) :])

    @rule(
        length=st.integers(0, 30) | st.integers(990, 1010),
        last_n=st.none() | st.integers(0, 40),
        align=st.sampled_from(["left", "right", "packed"]),
        fields=st.lists(st.sampled_from([field.name for field in FIELDS]), min_size=1, unique=True),
    )
    def read_into(self, length: int, last_n: int | None, align: str, fields: list[str]) -> None:
        users = self.rng.choice(USERS, 5)
        most = length if last_n is None or align == "packed" else min(length, last_n)
        found = self.vault.read(users, last_n=most, fields=fields)
        rows = (found.offsets[-1] + 3,) if align == "packed" else (5, length)
        out = {n: np.full(rows + v.shape[1:], 7, v.dtype) for n, v in found.fields.items()}
        lengths = self.vault.read_into(users, out, last_n=most, align=align, fill=5)
        np.testing.assert_array_equal(lengths, found.lengths)
        for name, values in found.fields.items():
            wanted = np.full_like(out[name], 7 if align == "packed" else 5)
            if align == "packed":
                wanted[: len(values)] = values
            for index in range(0 if align == "packed" else 5):
                own = found.of(index)[name]
                start = length - len(own) if align == "right" else 0
                wanted[index, start : start + len(own)] = own
            np.testing.assert_array_equal(out[name], wanted)

    @rule(keep_last=st.none() | st.integers(1, 50), keep_since=st.none() | TIMES)
    def retain(self, keep_last: int | None, keep_since: int | None) -> None:
        self.vault.compact(keep_last=keep_last, keep_since=keep_since)
        for user in list(self.model.histories):
            history = self.model.read(user, last_n=keep_last)
            self.model.histories[user] = [e for e in history if keep_since is None or e["time"] >= keep_since]

    @rule()
    def check(self) -> None:
        assert self.vault.check() == []

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "vault"):
            stats, histories = self.vault.stats(), self.model.histories
            assert stats["events"] == sum(map(len, histories.values()))
            assert stats["users"] == sum(1 for history in histories.values() if history)

    def teardown(self) -> None:
        if hasattr(self, "vault"):
            self.vault.close()
            self.reader.close()
            shutil.rmtree(self.folder)


TestVault = VaultMachine.TestCase
TestVault.pytestmark = [pytest.mark.filterwarnings("ignore:.*rebuilt from the segments")]
TestVault.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
