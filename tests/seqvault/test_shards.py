"""Shards: written by processes of their own, killed at any moment, adopted in one step."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from laser.seqvault import Field, SeqVault
from laser.seqvault.shards import Receipt, write_shard
from tests.seqvault.conftest import FIELDS, Events, Model, make_events


def sorted_events(rng: np.random.Generator, users: np.ndarray) -> tuple[np.ndarray, Events]:
    events = make_events(rng, len(users), high=500)
    order = np.lexsort((events["time"], users))
    return users[order], {name: values[order] for name, values in events.items()}


def batches_of(users: np.ndarray, events: Events, rows: int = 700) -> list[pa.RecordBatch]:
    columns = {"user": pa.array(users)} | {name: _arrow(values) for name, values in events.items()}
    return pa.table(columns).to_batches(max_chunksize=rows)


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _work(path: Path, shard: int, queue: multiprocessing.Queue) -> None:
    users, events = sorted_events(np.random.default_rng(shard), np.arange(4000) % 40 * 4 + shard)
    receipt = write_shard(path, batches_of(users, events), name=f"part-{shard}")
    queue.put((shard, json.dumps(receipt.to_dict())))


def test_workers_write_and_one_commit_adopts(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with SeqVault.create(path, FIELDS) as vault:
        queue = context.Queue()
        workers = [context.Process(target=_work, args=(path, shard, queue)) for shard in range(4)]
        for worker in workers:
            worker.start()
        receipts = [Receipt.from_dict(json.loads(queue.get(timeout=60)[1])) for _ in workers]
        for worker in workers:
            worker.join()
        assert len(vault.users()) == 0
        assert len(SeqVault.open(path).users()) == 0
        generation = vault.stats()["generation"]
        assert vault.adopt(receipts) == 16000
        assert vault.stats()["generation"] == generation + 1
        assert not (path / "shards").exists()
        assert vault.check() == []
        model = Model()
        for shard in range(4):
            users, events = sorted_events(np.random.default_rng(shard), np.arange(4000) % 40 * 4 + shard)
            model.append(users, events)
        model.compare(vault, np.arange(162), before=300, last_n=20)
        vault.append(np.arange(160), make_events(np.random.default_rng(9), 160))
        vault.compact()
        assert vault.stats()["events"] == 16160
    with SeqVault.open(path) as vault:
        assert vault.check() == []
        assert len(vault.users()) == 160


def _write_slowly(path: Path, written: object) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        for user in range(10**6):
            users = np.full(300_000, user)
            time_of = np.arange(300_000)
            yield pa.RecordBatch.from_pydict({"user": users, "time": time_of})
            if user == 2:
                written.set()  # type: ignore[attr-defined]

    write_shard(path, batches(), name="slow")


def test_a_killed_worker_leaves_only_what_the_next_writer_removes(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    written = context.Event()
    with SeqVault.create(path, [Field("time", "int64")]) as vault:
        worker = context.Process(target=_write_slowly, args=(path, written))
        worker.start()
        assert written.wait(60)
        time.sleep(0.05)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        vault.append([1], {"time": [1]})
        vault.checkpoint()
        assert list((path / "shards").glob("slow-*/*.seg"))
        assert vault.check() == []
    with SeqVault.open(path) as vault:
        assert vault.users().tolist() == [1]
    with SeqVault.open(path, "a"):
        assert not (path / "shards").exists()


def test_a_long_history_crosses_batches_and_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import laser.seqvault.shards as shards

    monkeypatch.setattr(shards, "SEGMENT_BYTES", 4096)
    monkeypatch.setattr(shards, "BLOCK_EVENTS", 1000)
    monkeypatch.setattr(shards, "COPY_WORDS", 1000)
    users, events = sorted_events(
        np.random.default_rng(3), np.repeat(np.array([2, 5, 6, 9, 2**64 - 1], np.uint64), [1, 9000, 3, 700, 12])
    )
    model = Model()
    model.append(users, events)
    with SeqVault.create(path, FIELDS) as vault:
        receipt = write_shard(path, batches_of(users, events), name="0")
        assert len(receipt.files) > 1
        assert (receipt.users, receipt.events) == (5, 9716)
        assert vault.adopt([receipt, write_shard(path, [], name="empty")]) == 9716
        model.compare(vault, np.array([2, 5, 6, 9, 2**64 - 1, 3], np.uint64))
        assert vault.check() == []


def test_mistakes(path: Path) -> None:
    users, events = sorted_events(np.random.default_rng(3), np.arange(40) % 4)
    batches = batches_of(users, events, rows=7)
    with SeqVault.create(path, FIELDS) as vault:
        first, second = (write_shard(path, batches, name=name) for name in "ab")
        with pytest.raises(ValueError, match="user 0 is in more than one shard"):
            vault.adopt([first, second])
        assert vault.adopt([first]) == 40
        with pytest.raises(ValueError, match="is missing, though a receipt names it"):
            vault.adopt([second])
        with pytest.raises(ValueError, match=r"user 0 of a shard has 10 events in .* already"):
            vault.adopt([write_shard(path, batches, name="b")])
        assert vault.stats()["events"] == 40
        assert vault.delete_user(0)
        vault.adopt([write_shard(path, batches[:1], name="b")])
        assert vault.lengths([0, 1, 99]).tolist() == [7, 10, 0]
    with pytest.raises(ValueError, match=r"row 7 of the shard \(user 0, time .* comes after user 3"):
        write_shard(path, pa.Table.from_batches(batches).slice(33).to_batches() + batches, name="c")
    with pytest.raises(ValueError, match=r"shard name is '\.\./x'"):
        write_shard(path, batches, name="../x")
    with pytest.raises(ValueError, match="no column 'owner'"):
        write_shard(path, batches, name="d", user="owner")
    assert not list((path / "shards").iterdir())


def test_ids_that_a_given_dictionary_lacks_are_refused(path: Path) -> None:
    users, events = sorted_events(np.random.default_rng(3), np.arange(40) % 4)
    with SeqVault.create(path, FIELDS, dictionaries=["item"]) as vault:
        with pytest.raises(ValueError, match="is not in the vault's dictionary of 'item'"):
            write_shard(path, batches_of(users, events), name="a")
        vault.append(users + 100, events)
        vault.checkpoint()
        vault.adopt([write_shard(path, batches_of(users, events), name="a")])
        np.testing.assert_array_equal(vault.read([2])["item"], vault.read([102])["item"])


def test_a_dictionary_chosen_meanwhile(path: Path, rng: np.random.Generator) -> None:
    users, events = sorted_events(np.random.default_rng(3), np.arange(40) % 4)
    often = make_events(rng, 40_000) | {"item": rng.choice(rng.integers(0, 2**60, 99), 40_000).astype(np.uint64)}
    with SeqVault.create(path, FIELDS) as vault:
        receipt = write_shard(path, batches_of(users, events), name="a")
        vault.append(np.arange(40_000) % 500 + 100, often)
        with pytest.raises(ValueError, match=r"dictionaries were \[\], now they are \['item'\]; write it again"):
            vault.adopt([receipt])
        assert vault.stats()["dictionaries"] == 1
        assert vault.check() == []
