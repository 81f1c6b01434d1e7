"""Derived fields: one value for each id, the same from every place an event can be, last value wins, never lost."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from laser.seqvault import Field, SeqVault
from laser.seqvault.durable import write_all

FIELDS = (
    Field("time", "int64"),
    Field("item", "int64"),
    Field("action", "uint8"),
    Field("author", "uint32"),
    Field("tags", "int16", 2),
)
DERIVED = {"author": "item", "tags": "item"}
USERS = np.arange(6)


def events(rng: np.random.Generator, size: int, start: int = 0) -> dict[str, np.ndarray]:
    return {
        "time": np.arange(start, start + size),
        "item": rng.integers(-30, 30, size) * 2**40,
        "action": rng.integers(0, 5, size).astype(np.uint8),
    }


class Values:
    """What the tables hold, kept the simplest way."""

    def __init__(self, vault: SeqVault, rng: np.random.Generator) -> None:
        self.vault, self.rng, self.author, self.tags = vault, rng, {}, {}

    def change(self, size: int) -> None:
        ids = self.rng.integers(-30, 30, size) * 2**40
        authors, tags = self.rng.integers(1, 2**32, size), self.rng.integers(-9, 9, (size, 2))
        self.vault.set_derived("author", ids, authors)
        self.vault.set_derived("tags", ids, tags)
        self.author |= dict(zip(ids.tolist(), authors.tolist()))
        self.tags |= dict(zip(ids.tolist(), tags.tolist()))

    def compare(self, vault: SeqVault, **options: object) -> None:
        for ids in ("raw", "codes"):
            found = vault.read(USERS, ids=ids, **options)  # pyrefly: ignore
            items = vault.read(USERS, **options)["item"].tolist()  # pyrefly: ignore
            assert found["author"].dtype == np.uint32
            assert found["author"].tolist() == [self.author.get(item, 0) for item in items]
            assert found["tags"].tolist() == [self.tags.get(item, [0, 0]) for item in items]
        alone = vault.read(USERS, fields=["tags", "author"], **options)  # pyrefly: ignore
        assert alone["author"].tolist() == found["author"].tolist()
        assert alone["tags"].tolist() == found["tags"].tolist()

    def compare_filtered(self, vault: SeqVault, **options: object) -> None:
        chosen = [*list(self.author.values())[:9], 0, 2**32 - 1]
        everything = vault.read(USERS, **options)  # pyrefly: ignore
        for ids in ("raw", "codes"):
            for where in ({"author": chosen}, {"action": [0, 1], "author": chosen}):
                found = vault.read(USERS, fields=["time", "tags"], ids=ids, where=where, **options)  # pyrefly: ignore
                kept = np.logical_and.reduce([np.isin(everything[name], allowed) for name, allowed in where.items()])
                assert 0 < kept.sum() < len(kept)
                np.testing.assert_array_equal(found["time"], everything["time"][kept])
                np.testing.assert_array_equal(found["tags"], everything["tags"][kept])


def test_the_same_from_every_place(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "vault"
    with SeqVault.create(path, FIELDS, derived=DERIVED) as vault, SeqVault.open(path) as reader:
        values = Values(vault, rng)
        values.compare(vault)
        vault.append(rng.integers(0, 5, 3000), events(rng, 3000))
        values.compare(vault)  # nothing known: all 0
        for step in range(3):
            values.change(20)
            values.compare(vault)
            values.compare(vault, last_n=100, before=2500 + step)
            vault.checkpoint()
            vault.append(rng.integers(0, 5, 50), events(rng, 50, 3000 + step))
            values.compare(vault, where={"action": [1, 2]})
            values.compare_filtered(vault, before=2000 + 500 * step)
            reader.refresh()
            values.compare_filtered(reader)
            values.compare(reader)
        vault.append([1, 2], events(rng, 2, 10))  # late: these users' histories are sorted at reading
        values.compare(vault)
        values.compare_filtered(vault)
        vault.compact()
        values.compare(vault)
        values.compare_filtered(vault)
        padded = {"author": np.zeros((6, 40), np.uint32), "tags": np.zeros((6, 40, 2), np.int16)}
        lengths = vault.read_into(USERS, padded, fill=0)
        found = vault.read(USERS, last_n=40)
        for user in USERS.tolist():
            np.testing.assert_array_equal(padded["author"][user, 40 - lengths[user] :], found.of(user)["author"])
            np.testing.assert_array_equal(padded["tags"][user, 40 - lengths[user] :], found.of(user)["tags"])
        assert vault.check() == []
    with SeqVault.open(path, "a") as vault:
        values.compare(vault)
        assert len(list(path.glob("*.tab"))) == 2


def test_saves_room(tmp_path: Path, rng: np.random.Generator) -> None:
    sizes, items = {}, rng.integers(0, 500, 20_000)
    for derived in (None, {"author": "item"}):
        fields = FIELDS[:2] + FIELDS[3:4]
        with SeqVault.create(tmp_path / str(derived), fields, dictionaries=["item"], derived=derived) as vault:
            stored = {"time": np.arange(20_000), "item": items}
            vault.append(rng.integers(0, 20, 20_000), stored if derived else stored | {"author": items * 7919})
            vault.checkpoint()
            sizes[derived is None] = vault.stats()["live_bytes"]
    assert sizes[False] < 0.6 * sizes[True]


def test_mistakes_are_one_sentence(tmp_path: Path, rng: np.random.Generator) -> None:
    for derived in ({"author": "nothing"}, {"author": "time"}, {"unknown": "item"}, {"author": "tags"}):
        with pytest.raises(ValueError, match="expected two event fields"):
            SeqVault.create(tmp_path / "vault", FIELDS, derived=derived)
    with SeqVault.create(tmp_path / "vault", FIELDS, derived=DERIVED) as vault:
        vault.append([1, 1], events(rng, 2))
        with pytest.raises(ValueError, match=r"not known: \['author'\]"):
            vault.append([1], events(rng, 1) | {"author": np.ones(1)})
        with pytest.raises(ValueError, match="'action' is not derived"):
            vault.set_derived("action", [1], [1])
        with pytest.raises(ValueError, match="shape"):
            vault.set_derived("tags", [1], [1])
        with pytest.raises(ValueError, match=r"outside uint32"):
            vault.set_derived("author", [1], [-1])
        with pytest.raises(ValueError, match=r"'tags' \(int16 x 2\) cannot be filtered by"):
            vault.read([1], where={"tags": 1})
        with SeqVault.open(tmp_path / "vault") as reader, pytest.raises(ValueError, match="open for reading"):
            reader.set_derived("author", [1], [1])


def test_a_failed_change_leaves_the_old_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vault"
    with SeqVault.create(path, FIELDS, derived=DERIVED) as vault:
        vault.append([1], {"time": [1], "item": [5], "action": np.zeros(1, np.uint8)})
        vault.set_derived("author", [5], [6])

        def full(file: int, data: bytes) -> None:
            write_all(file, data[:20])
            raise OSError("no room")

        with monkeypatch.context() as patch:
            patch.setattr("laser.seqvault.derived.write_all", full)
            with pytest.raises(OSError, match="no room"):
                vault.set_derived("author", [5], [7])
        with monkeypatch.context() as patch:
            patch.setattr("laser.seqvault.manifest.replace_file", full)
            with pytest.raises((OSError, TypeError)):
                vault.set_derived("author", [5], [7])
        assert vault.read([1])["author"].tolist() == [6]
        assert len(list(path.glob("*.tab"))) == 1
    with SeqVault.open(path) as vault:
        assert vault.read([1])["author"].tolist() == [6]
        assert vault.check() == []


def test_every_byte_of_a_table_flipped(tmp_path: Path) -> None:
    path = tmp_path / "vault"
    with SeqVault.create(path, FIELDS, derived=DERIVED) as vault:
        vault.append([1], {"time": [1], "item": [5], "action": np.zeros(1, np.uint8)})
        vault.set_derived("author", [5, 9], [6, 3])
        (file,) = path.glob("*.tab")
        data = file.read_bytes()
        for offset in range(len(data)):
            file.write_bytes(data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
            assert any(str(file) in problem.message for problem in vault.check())
            with pytest.raises(ValueError, match=rf"{file.name} (is damaged at offset \d+|has format version)"):
                SeqVault.open(path)
        file.write_bytes(data)


def test_reads_go_on_while_values_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SeqVault.create(tmp_path / "vault", FIELDS, derived=DERIVED) as vault:
        vault.append([1], {"time": [1], "item": [5], "action": [0]})
        vault.checkpoint()
        before = vault.stats()
        seen: list[int] = []

        def fsync_while_read(file: int) -> None:
            reader = Thread(target=lambda: seen.extend(vault.read([1])["author"].tolist()))
            reader.start()
            reader.join(10)
            fsync(file)

        with monkeypatch.context() as patch:
            fsync = os.fsync
            patch.setattr(os, "fsync", fsync_while_read)
            vault.set_derived("author", np.arange(100), np.arange(100) + 7)
        assert set(seen) == {0}
        assert vault.read([1])["author"].tolist() == [12]
        after = vault.stats()
        assert after["table_bytes"] == 64 + 100 * (8 + 4)
        assert after["memory_bytes"] - before["memory_bytes"] >= 100 * (8 + 4)
