"""The store's outside: what is appended is read back, in order, cut exactly, by everyone who may."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from laser.schema import Feature, Kind, Schema
from laser.seqvault import Field, SeqVault
from tests.seqvault.conftest import FIELDS, Model, make_events

LARGEST = 2**64 - 1
USERS = np.array([1, 2, 3, LARGEST, 77, 0], np.uint64)


def compare_all(model: Model, vault: SeqVault, rng: np.random.Generator) -> None:
    model.compare(vault, USERS)
    model.compare(vault, USERS, last_n=10)
    model.compare(vault, USERS, last_n=0)
    model.compare(vault, np.concatenate([USERS, USERS]), before=500_000, last_n=1500)
    model.compare(vault, USERS, before=rng.integers(0, 10**6, len(USERS)))


def test_append_read_through_every_place_an_event_can_be(path: Path, rng: np.random.Generator) -> None:
    model, vault = Model(), SeqVault.create(path, FIELDS)
    for step in range(6):
        low = step * 10**6 if step > 2 else 0  # the first rounds arrive out of order
        users, events = rng.choice(USERS[:5], 2500), make_events(rng, 2500, low, low + 10**6)
        vault.append(users, events)
        model.append(users, events)
        compare_all(model, vault, rng)
        vault.checkpoint()
        compare_all(model, vault, rng)
        if step in (1, 4):
            vault.close()
            vault = SeqVault.open(path, "a")
            compare_all(model, vault, rng)
        if step == 3:
            vault.compact()
            compare_all(model, vault, rng)
    assert vault.check() == []
    vault.close()


@pytest.mark.parametrize("events", [0, 1, 10, 999, 1000, 1001, 2000, 2001])
def test_lengths_around_a_chunk(vault: SeqVault, rng: np.random.Generator, events: int) -> None:
    model, values = Model(), make_events(rng, events)
    vault.append(np.full(events, 5), values)
    model.append(np.full(events, 5), values)
    vault.checkpoint()
    for last_n in (None, 1, 999, 1000, 1001):
        model.compare(vault, np.array([5]), last_n=last_n)


def test_cut_is_strict_and_exact(vault: SeqVault, rng: np.random.Generator) -> None:
    times = np.repeat(np.arange(1_700_000_000, 1_700_003_000), 2)  # float32 cannot tell these apart
    events = make_events(rng, len(times)) | {"time": times}
    vault.append(np.full(len(times), 1), events)
    for _ in range(2):
        for moment in (1_699_999_999, 1_700_000_000, 1_700_000_001, 1_700_001_500, 1_700_003_000, 2**63 - 1):
            found = vault.read([1], before=moment)["time"]
            np.testing.assert_array_equal(found, times[times < moment])
        vault.checkpoint()


def test_extreme_timestamps(vault: SeqVault, rng: np.random.Generator) -> None:
    times = np.array([-(2**63), -(2**63) + 1, -5, 0, 2**24 + 1, 2**53 + 1, 2**63 - 2, 2**63 - 1])
    vault.append(np.full(8, 1), make_events(rng, 8) | {"time": times})
    for _ in range(2):
        np.testing.assert_array_equal(vault.read([1])["time"], times)
        for index, moment in enumerate(times):
            np.testing.assert_array_equal(vault.read([1], before=moment)["time"], times[:index])
        vault.checkpoint()


def test_unknown_users_and_empty_batches(vault: SeqVault, rng: np.random.Generator) -> None:
    vault.append(np.empty(0, np.int64), make_events(rng, 0))
    assert vault.read([4, LARGEST]).lengths.tolist() == [0, 0]
    assert vault.read([]).offsets.tolist() == [0]
    vault.append([4], make_events(rng, 1))
    vault.checkpoint()
    assert vault.read([3, 4, 5]).lengths.tolist() == [0, 1, 0]


def test_fields_choose_columns(vault: SeqVault, rng: np.random.Generator) -> None:
    events = make_events(rng, 50, 0, 1)
    vault.append(np.full(50, 9), events)
    vault.checkpoint()
    found = vault.read([9], fields=["tags", "delta"])
    assert list(found.fields) == ["tags", "delta"]
    np.testing.assert_array_equal(found["tags"], events["tags"])


def test_created_from_a_schema(path: Path) -> None:
    features = (
        Feature(name="user", kind=Kind.USER, dtype="int64"),
        Feature(name="item", kind=Kind.ITEM, dtype="int32", cardinality=10),
        Feature(name="rating", kind=Kind.EVENT_SIDE, dtype="uint8", cardinality=6),
        Feature(name="label", kind=Kind.LABEL, dtype="uint8"),
        Feature(name="timestamp", kind=Kind.TIMESTAMP, dtype="int64"),
    )
    with SeqVault.create(path, Schema("toy", features)) as vault:
        vault.append([3, 3], {"timestamp": [5, 4], "item": [1, 2], "rating": [3, 4]})
        assert vault.read([3])["item"].tolist() == [2, 1]
        assert vault.read([3])["item"].dtype == np.int32


def test_large_appends_go_to_a_segment(vault: SeqVault, rng: np.random.Generator) -> None:
    users, events = rng.integers(0, 100, 200_000), make_events(rng, 200_000)
    vault.append([1], {name: values[:1] for name, values in events.items()})
    vault.append(users, events)
    assert vault.stats()["events_in_segments"] == 200_001
    own = np.flatnonzero(users == 7)
    own = own[np.argsort(events["time"][own], kind="stable")]
    np.testing.assert_array_equal(vault.read([7])["item"], events["item"][own])


def test_single_appends_are_read_at_once_and_in_order(path: Path, rng: np.random.Generator) -> None:
    fields, model, events = FIELDS[:5], Model(), make_events(rng, 6000)
    users = rng.integers(0, 4, 6000)
    with SeqVault.create(path, fields, tail_bytes=100_000) as vault:
        for index, user in enumerate(users.tolist()):
            event = {field.name: events[field.name][index].item() for field in fields}
            one = {name: np.array([value], events[name].dtype) for name, value in event.items()}
            model.append(np.array([user]), one)
            if index % 7 == 0:
                vault.append([user], one)
            else:
                assert vault.append_one(user, event) == 1
            if index % 600 == 0:
                model.compare(vault, np.arange(5))
        model.compare(vault, np.arange(5))
        vault.delete_user(3)
        model.histories.pop(3)
        for bad, message in (({"category": 70_000}, "outside uint16"), ({"time": "x"}, "convert them first")):
            with pytest.raises(ValueError, match=message):
                vault.append_one(1, event | bad)
        with pytest.raises(ValueError, match="missing"):
            vault.append_one(1, {"time": 1})
        with pytest.raises(ValueError, match="expected 0"):
            vault.append_one(-1, event)
        vault.append_one(1, event)
        model.append(np.array([1]), one)
    with SeqVault.open(path) as vault:
        model.compare(vault, np.arange(5))
        assert vault.check() == []


def test_memory_budget_is_kept(path: Path, rng: np.random.Generator) -> None:
    model = Model()
    with SeqVault.create(path, FIELDS, tail_bytes=100_000) as vault:
        for _ in range(20):
            users, events = rng.integers(0, 50, 500), make_events(rng, 500)
            vault.append(users, events)
            model.append(users, events)
            assert vault.stats()["memory_bytes"] < 500_000
        model.compare(vault, np.arange(50))
        assert vault.stats()["events"] == 10_000


def test_deleted_user_is_gone_from_reads_and_after_compaction_from_disk(path: Path, rng: np.random.Generator) -> None:
    secret = np.uint64(0xDEADBEEFCAFEF00D)
    with SeqVault.create(path, FIELDS) as vault:
        for _ in range(2):
            vault.append([secret] * 3 + [5], make_events(rng, 4))
            vault.checkpoint()
        vault.append([secret], make_events(rng, 1))
        assert vault.delete_user(int(secret)) is True
        assert vault.delete_user(6) is False
        assert vault.read([secret, 5]).lengths.tolist() == [0, 2]
    with SeqVault.open(path, "a") as vault:
        assert vault.read([secret, 5]).lengths.tolist() == [0, 2]
        vault.append([secret], make_events(rng, 1))
        vault.checkpoint()
        assert vault.read([secret, 5]).lengths.tolist() == [1, 2]
        vault.delete_user(int(secret))
        vault.compact()
        assert vault.check() == []
    needle = secret.tobytes()
    assert not any(needle in file.read_bytes() for file in path.iterdir())


def test_readers_beside_a_writer_see_what_it_did_at_their_refresh(path: Path, rng: np.random.Generator) -> None:
    model, users = Model(), np.arange(20)
    with SeqVault.create(path, FIELDS) as writer, SeqVault.open(path) as reader:
        for step in range(8):
            before = reader.read(users).lengths.tolist()
            batch, events = rng.integers(0, 20, 300), make_events(rng, 300)
            writer.append(batch, events)
            model.append(batch, events)
            if step in (2, 5):
                writer.checkpoint()
            if step == 6:
                writer.compact()
            assert reader.read(users).lengths.tolist() == before
            reader.refresh()
            model.compare(reader, users)


def test_threads_read_while_one_writes(path: Path, rng: np.random.Generator) -> None:
    failures: list[BaseException] = []
    done = threading.Event()

    def read(vault: SeqVault) -> None:
        try:
            lengths = np.zeros(50, np.int64)
            while not done.is_set():
                found = vault.read(np.arange(50))
                assert (found.lengths >= lengths).all()
                lengths = found.lengths
                assert (found["category"] == found["delta"]).all()
        except BaseException as error:
            failures.append(error)

    with SeqVault.create(path, FIELDS, tail_bytes=50_000) as vault:
        threads = [threading.Thread(target=read, args=(vault,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for step in range(60):
            events = make_events(rng, 100, step * 100, step * 100 + 100)
            events["delta"] = events["category"].astype(np.int32)
            vault.append(rng.integers(0, 50, 100), events)
            if step == 40:
                vault.compact()
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_import_loads_no_torch() -> None:
    code = "import laser.seqvault, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_single_appends_keep_to_the_memory_budget_also_between_reads(path: Path) -> None:
    fields = (Field("time", "int64"), Field("item", "uint16"))
    with SeqVault.create(path, fields, sync="none", tail_bytes=100_000, maintenance_rate=0) as vault:
        for number in range(20_000):
            vault.append_one(number % 7, {"time": number, "item": number % 1000})
            if number % 16 == 0:
                assert vault.read([number % 7], last_n=1)["time"].tolist() == [number]
        assert vault.stats()["segments"] > 0
        assert vault.stats()["events_in_memory"] <= 8192
        assert vault.read(range(7)).lengths.sum() == 20_000
