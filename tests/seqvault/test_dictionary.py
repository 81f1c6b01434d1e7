"""Id dictionaries: the same codes everywhere and for good, chosen where they pay, never misread when damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import Field, SeqVault
from laser.seqvault.dictionary import HEADER, Dictionary
from tests.seqvault.conftest import FIELDS, Events, Model, make_events

CODED = ["item", "delta", "tags"]
USERS = np.arange(10)
SMALL = (Field("time", "int64"), Field("item", "uint64"))


def repeating(rng: np.random.Generator, size: int, low: int = 0) -> Events:
    events = make_events(rng, size, low, low + 1000)
    return events | {"item": rng.choice(rng.integers(0, 2**64, 200, dtype=np.uint64), size)}


def small(items: list[int], start: int = 0) -> Events:
    return {"time": np.arange(start, start + len(items)), "item": np.array(items, np.uint64)}


def codes_of(vault: SeqVault, user: int = 1) -> list[int]:
    return vault.read([user], ids="codes")["item"].tolist()


def assert_codes(vault: SeqVault, names: list[str]) -> None:
    raw, coded = vault.read(USERS), vault.read(USERS, ids="codes")
    for name in names:
        assert coded[name].dtype == np.int32
        np.testing.assert_array_equal(vault.dictionary(name)[coded[name]], raw[name])
    np.testing.assert_array_equal(coded["weight"], raw["weight"])


def test_ids_come_back_raw_or_as_codes_from_every_place(path: Path, rng: np.random.Generator) -> None:
    model, vault = Model(), SeqVault.create(path, FIELDS, dictionaries=CODED)
    reader = SeqVault.open(path)
    for step in range(5):
        users, events = rng.integers(0, 9, 1500), repeating(rng, 1500, 0 if step < 2 else 1000 * step)
        vault.append(users, events)
        model.append(users, events)
        if step in (1, 3):
            vault.checkpoint()
        if step == 2:
            vault.compact()
        reader.refresh()
        for opened in (vault, reader):
            model.compare(opened, USERS)
            model.compare(opened, USERS, before=700, last_n=20)
            assert_codes(opened, CODED)
        np.testing.assert_array_equal(reader.dictionary("item"), vault.dictionary("item"))
    before = vault.dictionary("item")
    vault.close()
    with SeqVault.open(path, "a") as vault:
        assert vault.check() == []
        np.testing.assert_array_equal(vault.dictionary("item"), before)
        vault.compact()
        model.compare(vault, USERS)
        np.testing.assert_array_equal(vault.dictionary("item"), before)
    reader.close()


def test_codes_given_before_a_checkpoint_are_the_final_ones(path: Path) -> None:
    with SeqVault.create(path, SMALL, dictionaries=["item"]) as vault, SeqVault.open(path) as reader:
        vault.append([2, 1, 1], small([70, 50, 70]))
        vault.delete_user(2)
        vault.append_one(1, {"time": 9, "item": 10})
        reader.refresh()
        assert codes_of(reader) == [1, 0, 2]  # in order of arrival, whoever asks first
        vault.checkpoint()
        assert codes_of(vault) == codes_of(reader) == [1, 0, 2]
        reader.refresh()
        assert codes_of(reader) == [1, 0, 2]
        assert vault.dictionary("item").tolist() == [70, 50, 10]


def test_interrupted_commits_change_no_code(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bulk = {"time": np.arange(200_000), "item": np.arange(200_000, dtype=np.uint64) * np.uint64(2**40)}
    with SeqVault.create(path, SMALL, dictionaries=["item"]) as vault:
        vault.append([1, 1], small([7, 8]))
        vault.checkpoint()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", _fail)
            patch.setattr(Path, "replace", _fail)
            with pytest.raises(OSError, match="no manifest"):
                vault.append(np.full(200_000, 5), bulk)
            vault.append([1], small([9], 5))
            with pytest.raises(OSError, match="no manifest"):
                vault.checkpoint()
            with SeqVault.open(path) as reader:
                assert codes_of(reader) == codes_of(vault) == [0, 1, 2]
        vault.append([1], small([10], 6))
        vault.checkpoint()
        assert vault.dictionary("item").tolist() == [7, 8, 9, 10]
    with SeqVault.open(path) as vault:
        assert vault.check() == []
        assert vault.read([1])["item"].tolist() == [7, 8, 9, 10]


def _fail(*_: object) -> None:
    raise OSError("no manifest")


def test_every_byte_of_a_dictionary_flipped(path: Path) -> None:
    with SeqVault.create(path, SMALL, dictionaries=["item"]) as vault:
        for step in range(3):
            vault.append([1, 1], small([9 * step, 9 * step + 4], 2 * step))
            vault.checkpoint()
    (file,) = path.glob("*.ids")
    data = file.read_bytes()
    for offset in range(len(data)):
        file.write_bytes(data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
        with SeqVault.open(path) as vault:
            assert str(file) in vault.check()[0].message
            with pytest.raises(ValueError, match=rf"{file.name} (is damaged at offset \d+|has format version)"):
                vault.read([1])
    for size in range(len(data)):
        file.write_bytes(data[:size])
        with SeqVault.open(path) as vault, pytest.raises(ValueError, match=rf"{file.name} is damaged at offset \d+"):
            vault.read([1])
    file.unlink()
    with SeqVault.open(path) as vault, pytest.raises(ValueError, match=f"{file.name} is missing"):
        vault.read([1])


def test_a_code_outside_the_dictionary_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SeqVault.create(path, SMALL, dictionaries=["item"]) as vault:
        vault.append([1, 1], small([5, 6]))
        vault.checkpoint()
        monkeypatch.setattr(Dictionary, "ids", np.array([5], np.uint64))
        with pytest.raises(ValueError, match=r"damaged at offset 64: a chunk has codes outside .* 'item'"):
            vault.read([1])
        assert "codes outside" in vault.check()[0].message


def test_chosen_where_it_pays(tmp_path: Path, rng: np.random.Generator) -> None:
    fields = (*SMALL, Field("dense", "int32"), Field("unique", "int64"))
    pool, size = rng.integers(0, 2**64, 3000, dtype=np.uint64), 40_000
    users = rng.integers(0, 100, size)
    events = {
        "time": np.arange(size),
        "item": rng.choice(pool, size),
        "dense": rng.integers(0, 3000, size).astype(np.int32),
        "unique": rng.integers(0, 2**63, size),
    }
    sizes = {}
    for choice in (None, ()):
        with SeqVault.create(tmp_path / str(choice), fields, dictionaries=choice) as vault:
            vault.append(users, events)
            vault.checkpoint()
            found = vault.read(np.arange(100), ids="codes")
            assert found["dense"].dtype == np.int32
            assert found["unique"].dtype == np.int64
            sizes[choice] = vault.stats()["bytes_per_event"]
            if choice is None:
                assert len(vault.dictionary("item")) == len(np.unique(events["item"]))
            for name in ("dense", "unique") if choice is None else ("item",):
                with pytest.raises(ValueError, match="has no dictionary"):
                    vault.dictionary(name)
    assert sizes[None] < sizes[()] - 4


def test_a_compaction_adds_a_dictionary_to_an_older_vault(path: Path, rng: np.random.Generator) -> None:
    model, vault = Model(), SeqVault.create(path, FIELDS)
    for step in range(2):
        users, events = np.sort(rng.integers(0, 9, 10_000)), repeating(rng, 10_000, 1000 * step)
        events["item"] &= np.uint64(0xFFFF) << np.uint64(48)
        vault.append(users, events)
        model.append(users, events)
        if step == 0:
            vault.append([9], make_events(rng, 1))
            vault.delete_user(9)
            vault.checkpoint()
    with pytest.raises(ValueError, match="has no dictionary"):
        vault.dictionary("item")
    with SeqVault.open(path) as reader:
        vault.compact()
        model.compare(reader, USERS)  # an older state, its segments without codes
        reader.refresh()
        for opened in (vault, reader):
            model.compare(opened, USERS)
            assert_codes(opened, ["item"])
    assert vault.check() == []
    vault.close()


@pytest.mark.parametrize("name", ["time", "weight", "nothing"])
def test_only_integer_fields_have_dictionaries(path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=repr(name)):
        SeqVault.create(path, FIELDS, dictionaries=[name])
    assert not path.exists()


def test_unknown_form_of_ids_is_refused(vault: SeqVault) -> None:
    with pytest.raises(ValueError, match="ids is 'code'; expected 'raw' or 'codes'"):
        vault.read([1], ids="code")  # pyrefly: ignore


WRITER = """
import sys
import numpy as np
from laser.seqvault import SeqVault

with SeqVault.open(sys.argv[1], "a", sync="none", tail_bytes=30_000) as vault:
    number = vault.stats()["events"]
    rng = np.random.default_rng(int(sys.argv[2]))
    while True:
        size = int(rng.choice([8, 64, 800, 140_000]))
        times = np.arange(number, number + size)
        vault.append(times % 8, {"time": times, "item": (times // 3).astype(np.uint64) << np.uint64(30)})
        number += size
        print(number, flush=True)
        if rng.random() < 0.1:
            vault.compact()
"""


def test_killed_writers_keep_codes_and_ids(path: Path, rng: np.random.Generator) -> None:
    SeqVault.create(path, SMALL, dictionaries=["item"]).close()
    known = np.empty(0, np.uint64)
    for appends in (1, 2, 5, 9, 14):  # counted, not timed: a busy machine must not change what is tested
        command = [sys.executable, "-c", WRITER, str(path), str(appends)]
        process = subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(appends)]
        process.kill()
        output, errors = process.communicate()
        assert errors == b""
        assert process.returncode == -signal.SIGKILL
        acknowledged = max(map(int, [*lines, *output.split(b"\n")[:-1]]))
        with SeqVault.open(path) as vault:
            assert vault.check() == []
            found, coded = vault.read(np.arange(8)), vault.read(np.arange(8), ids="codes")
            assert len(found["time"]) >= acknowledged
            np.testing.assert_array_equal(found["item"], (found["time"] // 3).astype(np.uint64) << np.uint64(30))
            ids = vault.dictionary("item")
            np.testing.assert_array_equal(ids[coded["item"]], found["item"])
            np.testing.assert_array_equal(ids[: len(known)], known)
            known = ids
    assert HEADER.size == 64
