"""The power fails after each call that changes a file, and leaves every state that it may: none has wrong data."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from laser.seqvault import Field, SeqVault, writing
from laser.seqvault.rewriting import Rewrite
from laser.seqvault.shards import write_shard
from laser.seqvault.syncing import Sync
from tests.seqvault.power_cut import Disk, Files, Mark, Recorder

FIELDS = (Field("time", "int64"), Field("item", "uint64"), Field("shop", "int32"))
USERS = [1, 2, 3]
ITEMS = 7 * np.arange(200, dtype=np.uint64)
Histories = tuple[tuple[int, ...], ...]


class Program:
    """Changes a vault, and knows its histories after each operation; the values of ``shop`` count their changes."""

    def __init__(self, vault: SeqVault, recorder: Recorder) -> None:
        self.vault, self._recorder = vault, recorder
        self.histories: list[Histories] = [tuple(tuple(vault.read([user])["time"].tolist()) for user in USERS)]
        self.shops = 0

    def _run(self, histories: Histories, operation: Callable[[], object], durable: bool) -> None:
        self.histories.append(histories)
        issued = len(self.histories) - 1
        self._recorder.mark(issued, -1)
        operation()
        self._recorder.mark(issued, issued if durable else -1)

    def append(self, users: list[int], *, one: bool = False, durable: bool = False) -> None:
        histories, start = self.histories[-1], max([0, *(time + 1 for times in self.histories[-1] for time in times)])
        times = np.arange(start, start + len(users))
        events = {"time": times, "item": ITEMS[times]}
        added = tuple(
            (*known, *times[np.array(users) == user].tolist()) for user, known in zip(USERS, histories, strict=True)
        )
        vault = self.vault
        if one:
            self._run(added, lambda: vault.append_one(users[0], {"time": start, "item": int(ITEMS[start])}), durable)
        else:
            self._run(added, lambda: vault.append(users, events), durable)

    def delete(self, durable: bool) -> None:
        first, _, third = self.histories[-1]
        self._run((first, (), third), lambda: self.vault.delete_user(2), durable)

    def move(self, operation: Callable[[], object], *, durable: bool = True) -> None:
        """What changes no history but makes all durable."""
        self._run(self.histories[-1], operation, durable)

    def adopt(self, times: list[int]) -> None:
        """A history of the third user that another process wrote; its items are in the dictionary already."""
        rows = pa.table({"user": [3] * len(times), "time": times, "item": ITEMS[times]})
        receipt = write_shard(self.vault.path, rows.to_batches(), name="other")
        first, second, _ = self.histories[-1]
        self._run((first, second, tuple(times)), lambda: self.vault.adopt([receipt]), True)

    def rewrite(self, first: int, stop: int | None) -> None:
        """What maintenance does: the live chunks of some segments become one segment."""

        def replace_run() -> None:
            writer = self.vault._writing()
            catalog = writer.catalog
            run = catalog.manifest.segments[first:stop]
            opened = [catalog.files.segments[entry.slot] for entry in run]
            rewrite = Rewrite(run, opened, catalog.index, first_of_all=first == 0, breathe=lambda copied: None)
            writer.replace_run(rewrite, catalog.stage(rewrite.blocks()))

        self.move(replace_run)

    def wait_for_interval(self) -> None:
        """Until the background has made the log durable, which it does within 10 ms and the time of a sync."""

        def wait() -> None:
            end = time.monotonic() + 30
            log = self.vault._writing().recent.log
            assert log is not None
            while log.durable < log.position:
                assert time.monotonic() < end, "the log is not made durable"
                time.sleep(0.002)

        self.move(wait)

    def set_shops(self) -> None:
        self.shops += 1
        self.vault.set_derived("shop", ITEMS, np.full(len(ITEMS), self.shops))


def work(program: Program, sync: Sync) -> None:
    vault, durable = program.vault, sync == "always"
    program.append([1, 2, 1], durable=durable)
    program.set_shops()
    program.append([2], one=True, durable=durable)
    program.move(vault.checkpoint)
    program.append([1] * 5, durable=durable)
    program.append([1], one=True, durable=durable)
    program.delete(durable)
    program.append([2, 1], durable=durable)
    program.move(vault.sync)
    program.append([1, 1], durable=durable)
    program.move(vault.compact)
    program.set_shops()
    program.append([1, 2] * 30, durable=True)  # to a segment at once
    program.append([2], one=True, durable=durable)
    program.move(vault.checkpoint)
    program.append([1, 2], durable=durable)


def rearrange(program: Program, sync: Sync) -> None:
    """Segments replaced by maintenance, one of them with a deletion that only the log has, and adopted ones."""
    vault, durable = program.vault, sync == "always"
    for _ in range(2):
        program.append([1, 2, 1], durable=durable)
        program.move(vault.checkpoint)
    program.append([1], one=True, durable=durable)
    program.delete(durable)
    program.rewrite(0, None)
    program.append([1], durable=durable)
    program.adopt([0, 3])
    program.append([2], durable=durable)
    program.rewrite(1, None)


def wait_between(program: Program, sync: Sync) -> None:
    """A log that the background makes durable."""
    assert sync == "interval"
    program.append([1, 2, 1])
    program.wait_for_interval()
    program.append([2], one=True)
    program.append([1])
    program.delete(durable=False)
    program.wait_for_interval()
    program.move(program.vault.checkpoint)
    program.append([2, 1])
    program.wait_for_interval()
    program.append([1])


def assert_any(vault: SeqVault, allowed: set[Histories], shops: int) -> None:
    found = vault.read(USERS)
    histories = tuple(tuple(found.of(index)["time"].tolist()) for index in range(len(USERS)))
    assert histories in allowed
    np.testing.assert_array_equal(found["item"], ITEMS[found["time"]])
    assert set(found["shop"].tolist()) <= {found["shop"][0]} if len(found["shop"]) else True
    assert found["shop"].max(initial=0) <= shops


def states(recorder: Recorder, histories: list[Histories]) -> dict[Files, set[Histories]]:
    """Each state with the histories that it may have, after whatever moment the power failed."""
    disk, found = Disk.before(recorder), dict[Files, set[Histories]]()
    issued = acknowledged = 0
    for step in recorder.steps:
        if isinstance(step, Mark):
            issued, acknowledged = max(issued, step.issued), max(acknowledged, step.acknowledged)
        else:
            disk.do(step)
        for files in disk.after_power_cut():
            allowed = set(histories[acknowledged : issued + 1])
            found[files] = found.get(files, allowed) & allowed
    present = {path.name: path.read_bytes() for path in recorder.folder.iterdir() if path.name != "LOCK"}
    assert dict(disk.now()) == present, "a call that changes files was not recorded"
    return found


def put(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files:
        (folder / name).write_bytes(data)


def finish(program: Program) -> None:
    program.append([1, 2], durable=True)
    program.move(program.vault.checkpoint)
    program.append([2], durable=True)
    program.move(program.vault.close)


def assert_all(path: Path, found: dict[Files, set[Histories]], shops: int) -> None:
    for files, allowed in found.items():
        put(path, files)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an index that is rebuilt
            with SeqVault.open(path) as reader:
                assert_any(reader, allowed, shops)
            with SeqVault.open(path, "a", maintenance_rate=0) as writer:
                assert_any(writer, allowed, shops)
                writer.append([1], {"time": [190], "item": ITEMS[[190]]})
                assert writer.check() == []
        with SeqVault.open(path) as reader:
            assert reader.read([1])["time"].tolist()[-1] == 190


def no_waiting(patch: pytest.MonkeyPatch) -> None:
    for name in ("fsync", "fdatasync"):
        patch.setattr(os, name, lambda file: None)  # each would take the disk milliseconds


def record(
    patch: pytest.MonkeyPatch, folder: Path, sync: Sync, work: Callable[[Program, Sync], None] = work
) -> tuple[Recorder, Program]:
    """A process that is killed, and the next one."""
    with patch.context() as patched:
        patched.setattr(writing, "BULK_EVENTS", 50)
        recorder = Recorder(patched, folder)
        program = Program(SeqVault.open(folder, "a", sync=sync, maintenance_rate=0), recorder)
        work(program, sync)
        program.vault._release()
        program.vault = SeqVault.open(folder, "a", sync="always", maintenance_rate=0)
        finish(program)
    return recorder, program


@pytest.mark.parametrize("sync", ["always", "none"])
def test_every_state_that_a_power_cut_may_leave(path: Path, monkeypatch: pytest.MonkeyPatch, sync: Sync) -> None:
    SeqVault.create(path, FIELDS, derived={"shop": "item"}, maintenance_rate=0).close()
    recorder, program = record(monkeypatch, path, sync)
    assert len(recorder.steps) > 150
    found = states(recorder, program.histories)
    no_waiting(monkeypatch)
    assert_all(path, found, program.shops)


@pytest.mark.parametrize(("sync", "work"), [("none", rearrange), ("interval", wait_between)])
def test_every_state_that_work_in_the_background_may_leave(
    path: Path, monkeypatch: pytest.MonkeyPatch, sync: Sync, work: Callable[[Program, Sync], None]
) -> None:
    SeqVault.create(path, FIELDS, derived={"shop": "item"}, maintenance_rate=0).close()
    recorder, program = record(monkeypatch, path, sync, work)
    found = states(recorder, program.histories)
    no_waiting(monkeypatch)
    assert_all(path, found, program.shops)


def test_the_power_fails_again_while_the_next_writer_recovers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SeqVault.create(path, FIELDS, derived={"shop": "item"}, maintenance_rate=0).close()
    recorder, first = record(monkeypatch, path, "none")
    left = list(states(recorder, first.histories))
    no_waiting(monkeypatch)
    for files in left[:: len(left) // 4]:
        put(path, files)
        with monkeypatch.context() as patched, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recorder = Recorder(patched, path)
            second = Program(SeqVault.open(path, "a", sync="always", maintenance_rate=0), recorder)
            finish(second)
        assert_all(path, states(recorder, second.histories), first.shops)
