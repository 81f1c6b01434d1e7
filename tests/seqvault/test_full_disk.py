"""A file system of a few MiB, filled to different points: all stays readable, and goes on when there is room."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from laser.seqvault import Field, SeqVault, commands, writing

FIELDS = (Field("time", "int64"), Field("item", "uint64"), Field("shop", "int32"))
USERS = np.arange(8)
PAGE = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path, leave: int) -> None:
    """Leave so many pages of the disk."""
    with ballast.open("wb", buffering=0) as file:
        for size in (64 * PAGE, PAGE):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
        file.truncate(max(0, file.tell() - leave * PAGE))


def item_of(times: np.ndarray) -> np.ndarray:
    return times.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def events(start: int, size: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Of ids that cannot be packed; of a time follows the user and the item."""
    times = start + np.arange(size)
    return times % 8, {"time": times, "item": item_of(times)}


def assert_holds(vault: SeqVault, number: int) -> None:
    found = vault.read(USERS)
    for user in USERS:
        history = found.of(int(user))
        np.testing.assert_array_equal(history["time"], np.arange(user, number, 8))
        np.testing.assert_array_equal(history["item"], item_of(history["time"]))


def append(vault: SeqVault, number: int) -> Iterator[int]:
    yield vault.append(*events(number, 1600))


def append_singles(vault: SeqVault, number: int) -> Iterator[int]:
    times = np.arange(number, number + 160)
    for time, item in zip(times.tolist(), item_of(times).tolist(), strict=True):
        yield vault.append_one(time % 8, {"time": time, "item": item})


def append_many(vault: SeqVault, number: int) -> Iterator[int]:
    yield vault.append(*events(number, 8000))


def load(vault: SeqVault, number: int) -> Iterator[int]:
    users, columns = events(number, 8000)
    yield vault.load(pa.table({"user": users, **columns}), memory_bytes=100_000)


def checkpoint(vault: SeqVault, _: int) -> Iterator[int]:
    vault.checkpoint()
    yield 0


def compact(vault: SeqVault, _: int) -> Iterator[int]:
    vault.compact()
    yield 0


def set_shops(vault: SeqVault, number: int) -> Iterator[int]:
    vault.set_derived("shop", item_of(np.arange(number)), np.ones(number, np.int32))
    yield 0


@pytest.mark.parametrize("operation", [append, append_singles, append_many, load, checkpoint, compact, set_shops])
def test_a_full_disk(
    disk: Path, monkeypatch: pytest.MonkeyPatch, operation: Callable[[SeqVault, int], Iterator[int]]
) -> None:
    monkeypatch.setattr(writing, "BULK_EVENTS", 4000)
    path, ballast, number, leave, done = disk / "vault", disk / "ballast", 8000, 0, False
    with SeqVault.create(path, FIELDS, derived={"shop": "item"}, maintenance_rate=0) as vault:
        vault.append(*events(0, number))
        while not done:
            number += vault.append(*events(number, 800))
            fill(ballast, leave)
            try:
                for acknowledged in operation(vault, number):
                    number += acknowledged
                done = True
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
                leave += 1 + leave // 4
            assert_holds(vault, number)
            with SeqVault.open(path) as reader:
                assert_holds(reader, number)
            ballast.unlink()
            assert vault.check() == []
        assert leave > 1
        number += sum(operation(vault, number))
    with SeqVault.open(path) as reader:
        assert_holds(reader, number)
        assert len(list(path.glob("*.seg"))) == reader.stats()["segments"]


def test_closed_and_opened_on_a_full_disk(disk: Path) -> None:
    path, ballast, number = disk / "vault", disk / "ballast", 8000
    vault = SeqVault.create(path, FIELDS, derived={"shop": "item"}, maintenance_rate=0)
    vault.append(*events(0, number))
    fill(ballast, 0)
    vault.close()
    with SeqVault.open(path) as reader:
        assert_holds(reader, number)
        assert reader.check() == []
    with pytest.raises(OSError, match="No space left"):
        SeqVault.open(path, "a")
    with pytest.raises(ValueError, match=r"No space left on device .*; the vault is as before"):
        commands.main(["compact", str(path)])
    ballast.unlink()
    with SeqVault.open(path, "a") as vault:
        vault.append(*events(number, 800))
        assert_holds(vault, number + 800)
        assert vault.check() == []
