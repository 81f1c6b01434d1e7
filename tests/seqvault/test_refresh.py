"""A reader catches up with a writer without reading again what has stayed the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import SeqVault
from laser.seqvault.dictionary import Dictionary, DictionaryEntry
from laser.seqvault.maintenance import Maintenance
from laser.seqvault.recovery import LogFollower
from laser.seqvault.segment import Segment
from tests.seqvault.conftest import FIELDS, Model, make_events

USERS = np.arange(20)


def grow(vault: SeqVault, model: Model, rng: np.random.Generator) -> None:
    users, events = rng.choice(USERS, 300), make_events(rng, 300)
    vault.append(users, events)
    model.append(users, events)
    vault.checkpoint()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Numbers of the segments opened and of the directories read; first ids read of dictionaries; logs begun."""
    seen: dict[str, list[int]] = {"segments": [], "directories": [], "ids": [], "logs": []}
    opened, directory, read, begun = Segment.__init__, Segment.directory, Dictionary._read, LogFollower.__init__

    def noting_open(self: Segment, folder: Path, number: int, layout: object) -> None:
        seen["segments"].append(number)
        opened(self, folder, number, layout)  # pyrefly: ignore

    def noting_directory(self: Segment) -> np.ndarray:
        seen["directories"].append(self.number)
        return directory(self)

    def noting_read(self: Dictionary, known: DictionaryEntry, entry: DictionaryEntry) -> list[np.ndarray]:
        seen["ids"].append(known.ids)
        return read(self, known, entry)

    def noting_log(self: LogFollower, *arguments: object) -> None:
        begun(self, *arguments)  # pyrefly: ignore
        seen["logs"].append(self.number)

    monkeypatch.setattr(Segment, "__init__", noting_open)
    monkeypatch.setattr(Segment, "directory", noting_directory)
    monkeypatch.setattr(Dictionary, "_read", noting_read)
    monkeypatch.setattr(LogFollower, "__init__", noting_log)
    return seen


def clear(counted: dict[str, list[int]]) -> None:
    for numbers in counted.values():
        numbers.clear()


def test_only_what_is_new_is_read(path: Path, rng: np.random.Generator, counted: dict[str, list[int]]) -> None:
    model = Model()
    with SeqVault.create(path, FIELDS, dictionaries=["item"], maintenance_rate=0) as vault:
        for _ in range(3):
            grow(vault, model, rng)
        with SeqVault.open(path) as reader:
            model.compare(reader, USERS)
            known = len(reader.dictionary("item"))
            clear(counted)
            grow(vault, model, rng)
            clear(counted)
            reader.refresh()
            model.compare(reader, USERS)
            newest = vault._writing().catalog.manifest.segments[-1].number
            assert counted["segments"] == counted["directories"] == [newest]
            assert counted["ids"] == [known]
            assert len(reader.dictionary("item")) > known
            np.testing.assert_array_equal(reader.dictionary("item"), vault.dictionary("item"))


def test_the_tail_stays_when_only_the_index_is_saved(
    path: Path, rng: np.random.Generator, counted: dict[str, list[int]]
) -> None:
    model = Model()
    with SeqVault.create(path, FIELDS, dictionaries=["item"], maintenance_rate=0) as vault:
        grow(vault, model, rng)
        with SeqVault.open(path) as reader:
            users, events = rng.choice(USERS, 50), make_events(rng, 50)
            vault.append(users, events)
            model.append(users, events)
            vault.append([3], make_events(rng, 1))
            reader.refresh()
            reader.read(USERS)  # loads the dictionary
            vault._writing().save_index()
            vault.delete_user(3)
            model.histories.pop(3, None)
            clear(counted)
            reader.refresh()
            model.compare(reader, USERS)
            assert not any(counted.values())
            assert reader.read([3]).lengths.tolist() == [0]


def test_a_deletion_stays_when_segments_are_added_or_replaced(path: Path, rng: np.random.Generator) -> None:
    """The log that the reader followed goes on, so it is not read again; its deletions must hold in the new index."""
    model = Model()
    with SeqVault.create(path, FIELDS, maintenance_rate=0) as vault:
        for _ in range(9):
            grow(vault, model, rng)
        with SeqVault.open(path) as reader:
            vault.delete_user(4)
            model.histories.pop(4, None)
            vault.append([5], events := make_events(rng, 1))
            model.append(np.array([5]), events)
            reader.refresh()
            writer = vault._writing()
            first = writer.catalog.manifest.first_log
            maintenance = Maintenance(writer, None, 0.9)
            assert maintenance.step()
            maintenance.stop()
            assert writer.catalog.manifest.first_log == first
            reader.refresh()
            model.compare(reader, USERS)
            assert reader.read([4]).lengths.tolist() == [0]
            assert reader.check() == []


def test_superseded_records_do_not_gather(path: Path, rng: np.random.Generator) -> None:
    model = Model()
    with SeqVault.create(path, FIELDS, maintenance_rate=0) as vault, SeqVault.open(path) as reader:
        sizes = []
        for _ in range(70):
            grow(vault, model, rng)
            reader.refresh()
            sizes.append(reader.stats()["index_bytes"])
        assert max(sizes) < 40_000
        model.compare(reader, USERS)
