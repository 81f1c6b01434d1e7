"""Each call that changes files fails once, in turn: nothing acknowledged is lost, reads and the next writer go on."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laser.seqvault import Field, SeqVault, durable, writing

SMALL = (Field("time", "int64"), Field("item", "uint32"))
CALLS = ("open", "write", "fsync", "fdatasync", "ftruncate", "replace")


class FailingFiles:
    """Calls that change files, of which the one with number ``failing`` fails."""

    def __init__(self, patch: pytest.MonkeyPatch, failing: int) -> None:
        self.count, self._failing = 0, failing
        for name in CALLS:
            patch.setattr(os, name, self._wrapped(getattr(os, name), errno.EIO if "sync" in name else errno.ENOSPC))

    def _wrapped(self, call: Callable[..., Any], code: int) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self._failing:
                raise OSError(code, os.strerror(code))
            return call(*arguments, **options)

        return wrapped


def small(times: np.ndarray) -> dict[str, np.ndarray]:
    return {"time": times, "item": times.astype(np.uint32)}


def attempt(operation: Callable[[], object]) -> bool:
    """Whether it succeeded; it may fail only with the system's error or one that says to open the vault again."""
    try:
        operation()
    except OSError:
        return False
    except ValueError as error:
        if "open the vault again" not in str(error):
            raise
        return False
    return True


def work(vault: SeqVault, acknowledged: list[int]) -> None:
    """Appends of all kinds between all that moves events, with the reads that must still be right."""
    for start, step in zip(range(0, 40, 10), [vault.checkpoint, vault.compact, vault.checkpoint, vault.sync]):
        times = np.arange(start, start + 5)
        if attempt(partial(vault.append, np.ones(5, np.int64), small(times))):
            acknowledged += times.tolist()
        if attempt(partial(vault.append_one, 1, {"time": start + 5, "item": start + 5})):
            acknowledged.append(start + 5)
        attempt(step)
        assert_kept(vault, acknowledged)


def assert_kept(vault: SeqVault, acknowledged: list[int]) -> None:
    """All acknowledged events, in order, once; of the others some perhaps, also once."""
    found = vault.read([1])["time"].tolist()
    assert set(acknowledged) <= set(found)
    assert found == sorted(set(found))


def test_each_call_fails_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = 0
    while True:
        failing += 1
        shutil.rmtree(path, ignore_errors=True)
        SeqVault.create(path, SMALL, dictionaries=["item"], maintenance_rate=0).close()
        acknowledged: list[int] = []
        vault = SeqVault.open(path, "a", sync="always", maintenance_rate=0)
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            files = FailingFiles(patch, failing)
            work(vault, acknowledged)
            attempt(vault.close)
        if files.count < failing:
            break
        with SeqVault.open(path) as reader:
            assert_kept(reader, acknowledged)
        with SeqVault.open(path, "a") as writer:
            writer.append([1], small(np.array([99])))
            assert_kept(writer, [*acknowledged, 99])
            assert writer.check() == [], failing
    assert failing > 60
    assert len(acknowledged) == 24


def test_each_call_of_an_opening_fails_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SeqVault.create(path, SMALL, maintenance_rate=0) as vault:
        vault.append(np.ones(5, np.int64), small(np.arange(5)))
    failing, hit = 0, True
    while hit:
        failing += 1
        with monkeypatch.context() as patch:
            files = FailingFiles(patch, failing)
            with contextlib.suppress(OSError):
                SeqVault.open(path, "a", maintenance_rate=0).close()
            hit = files.count >= failing
        with SeqVault.open(path) as reader:
            assert reader.read([1])["time"].tolist() == list(range(5))
            assert reader.check() == []
            assert reader.check() == []
    assert failing > 10


@pytest.mark.parametrize("operation", ["checkpoint", "compact", "set_derived"])
def test_a_state_in_doubt_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    fields = (*SMALL, Field("shop", "int32"))
    vault = SeqVault.create(path, fields, derived={"shop": "item"}, sync="always", maintenance_rate=0)
    vault.append([1, 1], small(np.arange(2)))
    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_directory", _fail)  # the manifest is in place then, perhaps not for good
        with pytest.raises(OSError, match="open it again"):
            vault.checkpoint()
    before = {file: file.read_bytes() for file in path.glob("*")}
    arguments = ["shop", [1], [5]] if operation == "set_derived" else []
    with pytest.raises(ValueError, match="open the vault again"):
        getattr(vault, operation)(*arguments)
    vault.close()
    assert {file: file.read_bytes() for file in path.glob("*") if file in before and file.suffix != ".wal"}.items() <= (
        before.items()
    )
    with SeqVault.open(path, "a") as opened:
        assert_kept(opened, [0, 1])
        assert opened.check() == []


def test_a_snapshot_in_doubt_gets_a_generation_of_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = SeqVault.create(path, SMALL, maintenance_rate=0)
    vault.append([1, 1], small(np.arange(2)))
    vault.checkpoint()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_directory", _fail)
        vault._writer.save_index()  # pyrefly: ignore
    monkeypatch.setattr(writing, "BULK_EVENTS", 1)
    with SeqVault.open(path) as reader:
        vault.append([1], small(np.array([2])))
        reader.refresh()
        assert reader.read([1])["time"].tolist() == [0, 1, 2]
    vault.close()


def _fail(_: Path) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
