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
from tests.seqvault.conftest import FIELDS, Model, make_events

USERS = np.array([0, 1, 2, 2**63, 2**64 - 1], np.uint64)
IDS = ["item", "category", "delta", "tags"]
TIMES = st.integers(0, 40)


class VaultMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.folder = Path(tempfile.mkdtemp())
        self.coded = self.rng.choice(IDS, 2, replace=False).tolist()
        self.vault = SeqVault.create(
            self.folder / "vault", FIELDS, dictionaries=self.coded, sync="none", tail_bytes=3000
        )
        self.reader = SeqVault.open(self.folder / "vault")
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
        self.vault = SeqVault.open(self.folder / "vault", "a", sync="none", tail_bytes=3000)

    @rule()
    def lose_the_index(self) -> None:
        self.vault.close()
        for file in (self.folder / "vault").glob("*.idx"):
            file.write_bytes(file.read_bytes()[:-1])
        self.vault = SeqVault.open(self.folder / "vault", "a", sync="none", tail_bytes=3000)

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
