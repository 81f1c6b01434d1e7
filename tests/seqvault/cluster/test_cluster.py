"""A vault in a real cluster equals the one in a folder, also while its nodes die and its slots move."""

from __future__ import annotations

import importlib
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laser.seqvault import Field, SeqVault
from tests.seqvault.cluster.conftest import Cluster, wait_until
from tests.seqvault.conftest import FIELDS, Model, make_events

pytest.importorskip("redis", reason="needs redis-py: pip install 'laser-ctr[cluster]'")
ClusterVault: Any = importlib.import_module("laser.seqvault.cluster").ClusterVault


@pytest.fixture
def name() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def spread(cluster: Cluster, name: str) -> Iterator[Any]:
    with ClusterVault.create(cluster.nodes, name, FIELDS, chunk_events=50, tail_events=16, timeout=60) as opened:
        yield opened


def test_reads_equal_those_of_a_folder(spread: Any, path: Path, rng: np.random.Generator) -> None:
    with SeqVault.create(path, FIELDS) as vault:
        for round_ in range(12):
            size = int(rng.choice([1, 3, 40, 700]))
            users = rng.integers(0, 12, size)
            # First in order of time, as events mostly come; then late ones, and many at the same time.
            low, high = (round_ * 1000, round_ * 1000 + 999) if round_ < 6 else (0, 50) if round_ < 9 else (0, 10**6)
            events = make_events(rng, size, low, high)
            if round_ < 6:
                events["time"].sort()
            assert spread.append(users, events) == vault.append(users, events) == size
            asked = rng.permutation(np.arange(15))  # three of them unknown
            cuts = rng.integers(0, 10**6 if round_ >= 9 else 7000, 15)
            for options in (
                {},
                {"last_n": 5},
                {"last_n": 70, "before": cuts},
                {"before": int(cuts[0])},
                {"last_n": 0},
                {"fields": ["tags", "item"], "last_n": 60},
                {"where": {"category": [1, 3]}, "last_n": 9, "before": cuts},
            ):
                found, expected = spread.read(asked, **options), vault.read(asked, **options)
                np.testing.assert_array_equal(found.offsets, expected.offsets, err_msg=str(options))
                for field, values in expected.fields.items():
                    assert found[field].dtype == values.dtype
                    np.testing.assert_array_equal(found[field], values, err_msg=f"{options} {field}")
        assert spread.stored_bytes([1])[0] > 0
        assert spread.delete_user(3)
        assert not spread.delete_user(3)
        assert len(spread.read([3])["time"]) == 0


def test_extreme_timestamps_are_not_rounded(spread: Any) -> None:
    times = np.array([-(2**63), -1, 0, 2**53, 2**53 + 1, 2**53 + 2, 2**63 - 2, 2**63 - 1] * 20)
    events = make_events(np.random.default_rng(1), len(times))
    spread.append(np.full(len(times), 2**64 - 1, np.uint64), events | {"time": times})
    assert spread.read([2**64 - 1])["time"].tolist() == sorted(times.tolist())
    for cut in (-(2**63), -(2**63) + 1, 2**53 + 1, 2**53 + 2, 2**63 - 1):
        assert spread.read([2**64 - 1], before=cut)["time"].tolist() == sorted(times[times < cut].tolist())


def test_mistakes_are_one_sentence(cluster: Cluster, spread: Any, name: str) -> None:
    with pytest.raises(ValueError, match="already; open it"):
        ClusterVault.create(cluster.nodes, name, FIELDS)
    with pytest.raises(ValueError, match="there is no vault"):
        ClusterVault.open(cluster.nodes, "nothing")
    with pytest.raises(OSError, match="no node of the cluster can be asked"):
        ClusterVault.open(["127.0.0.1:1"], name)
    with pytest.raises(ValueError, match="expected host:port"):
        ClusterVault.open(["localhost"], name)
    with pytest.raises(ValueError, match="has no dictionaries"):
        spread.read([1], ids="codes")
    with pytest.raises(ValueError, match="missing: "):
        spread.append([1], {"time": [1]})
    spread.append([1], make_events(np.random.default_rng(1), 1))
    for damaged in (b"x" * 77, b""):
        slot_owner = cluster.owner(_slot(spread._key(1)))
        cluster.ask(slot_owner, "HSET", spread._key(1), "t", damaged)
        if damaged:
            with pytest.raises(ValueError, match="history of user 1 in the cluster is damaged"):
                spread.read([1])
    spread.append(np.ones(100, np.int64), make_events(np.random.default_rng(1), 100))
    cluster.ask(slot_owner, "HSET", spread._key(1), "c0", bytes(800))
    with pytest.raises(ValueError, match="history of user 1 in the cluster is damaged"):
        spread.read([1])


def _slot(key: bytes) -> int:
    from redis.crc import key_slot

    return key_slot(key)


def test_a_repeated_append_is_stored_once(spread: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the first attempt is lost after the node has done the work."""
    router, model = spread._router, Model()
    users, events = np.arange(9) % 5, make_events(np.random.default_rng(2), 9)
    spread.append(users, events)  # every node knows the script from now on
    model.append(users, events)
    real, lost = router._exchange, []

    def losing(batches: dict) -> dict:
        answers = real(batches)
        if any("EVALSHA" in command for commands in batches.values() for command in commands) and len(lost) < 2:
            lost.append(1)
            return dict.fromkeys(answers, ConnectionError("lost on the way"))
        return answers

    monkeypatch.setattr(router, "_exchange", losing)
    events = make_events(np.random.default_rng(3), 9)
    spread.append(users, events)
    model.append(users, events)
    assert len(lost) == 2
    model.compare(spread, np.arange(5))


def keep_appending(opened: Any, users: np.ndarray, acknowledged: dict, ended: threading.Event, failed: list) -> None:
    number = 0
    try:
        while not ended.is_set():
            opened.append(users, {"time": np.full(len(users), number), "item": users})
            acknowledged[int(users[0])] = number = number + 1
    except Exception as error:
        failed.append(error)


def wait_for_progress(acknowledged: dict, failed: list, appends: int = 15, seconds: float = 60.0) -> None:
    seen, end = dict(acknowledged), time.monotonic() + seconds
    while any(acknowledged[key] < seen[key] + appends for key in seen):
        assert not failed, failed
        assert time.monotonic() < end, acknowledged
        time.sleep(0.02)


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(3000)])])
def test_nodes_die_and_slots_move_under_traffic(cluster: Cluster, name: str, rounds: int) -> None:
    fields = [Field("time", "int64"), Field("item", "uint64")]
    groups = [np.arange(first, 60, 3).astype(np.uint64) for first in range(3)]
    acknowledged, failed, ended = {0: 0, 1: 0, 2: 0}, [], threading.Event()
    options = {"timeout": 60, "node_timeout": 1.0}
    with ClusterVault.create(cluster.nodes, name, fields, chunk_events=20, tail_events=8, **options) as opened:
        threads = [
            threading.Thread(target=keep_appending, args=(opened, group, acknowledged, ended, failed))
            for group in groups
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(rounds):
                wait_for_progress(acknowledged, failed)
                slot = _slot(opened._key(7))
                source = cluster.owner(slot)
                others = {cluster.owner(each) for each in (100, 8000, 16000)} - {source}
                cluster.move_slot(slot, source, others.pop(), pause=0.05)
                wait_for_progress(acknowledged, failed)
                victim = cluster.owner(_slot(opened._key(11)))
                cluster.kill(victim)
                wait_for_progress(acknowledged, failed)
                known = dict(acknowledged)
                for first, group in zip(known, groups):
                    assert (opened.read(group, fields=["time"]).lengths >= known[first]).all()
                cluster.start(victim)
                cluster.wait_ready()
                wait_for_progress(acknowledged, failed)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert not failed, failed
        for first, group in zip(acknowledged, groups):
            found = opened.read(group)
            for index, user in enumerate(group.tolist()):
                history = found.of(index)
                assert history["time"].tolist() == list(range(acknowledged[first]))
                assert set(history["item"].tolist()) <= {user}


def test_what_no_replica_confirms_is_not_acknowledged(cluster: Cluster, name: str) -> None:
    fields = [Field("time", "int64")]
    ClusterVault.create(cluster.nodes, name, fields).close()
    with ClusterVault.open(cluster.nodes, name, timeout=3.0, node_timeout=0.4) as opened:
        primary = cluster.owner(_slot(opened._key(5)))
        replica = int(cluster.ask(primary, "ROLE")[2][0][1])
        cluster.kill(replica)
        wait_until(lambda: opened.append([5], {"time": [0]}), "a primary without replica takes no appends")
        cluster.start(replica)
        cluster.wait_ready()
        time.sleep(1.0)  # from now on the one that has come back counts again
        opened._router.timeout = 0.8  # less than the cluster takes to give the replica up
        cluster.processes[replica].send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError, match="replicas have confirmed"):
                opened.append([5], {"time": [1]})
        finally:
            cluster.processes[replica].send_signal(signal.SIGCONT)
    cluster.wait_ready()
