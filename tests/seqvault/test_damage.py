"""Torn logs are cut, damaged files are refused by name and offset, foreign versions and second writers by reason."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import Field, SeqVault
from laser.seqvault.checksum import crc32c, crc32c_words
from laser.seqvault.layout import Layout
from laser.seqvault.log import FILE, LogWriter, Record
from laser.seqvault.manifest import Manifest
from laser.seqvault.recovery import LogFollower
from tests.seqvault.conftest import FIELDS, Model, make_events

SMALL = (Field("time", "int64"), Field("item", "uint16"))
RECORDS = 6


def small_events(start: int, size: int = 2) -> dict[str, np.ndarray]:
    times = np.arange(start, start + size)
    return {"time": times, "item": times.astype(np.uint16)}


def times_of(path: Path) -> list[int]:
    with SeqVault.open(path) as vault:
        return vault.read([1])["time"].tolist()


def make_log(path: Path, sync: str) -> tuple[Path, list[int]]:
    """A vault whose events are in the log only, and where each record of the log ends."""
    with SeqVault.create(path, SMALL, sync=sync) as vault:
        (log,) = path.glob("*.wal")
        ends = [log.stat().st_size]
        for record in range(RECORDS):
            vault.append([1, 1], small_events(2 * record))
            ends.append(log.stat().st_size)
    return log, ends


def test_log_cut_at_every_byte_keeps_exactly_the_whole_records(tmp_path: Path) -> None:
    log, ends = make_log(tmp_path / "vault", "always")
    data = log.read_bytes()
    for size in range(len(data)):
        log.write_bytes(data[:size])
        whole = sum(end <= size for end in ends[1:])
        assert times_of(tmp_path / "vault") == list(range(2 * whole)), size


def test_writer_goes_on_after_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "vault"
    log, ends = make_log(path, "none")
    data = log.read_bytes()
    for size in range(0, len(data), 7):
        shutil.rmtree(path)
        log, _ = make_log(path, "none")
        log.write_bytes(data[:size])
        whole = sum(end <= size for end in ends[1:])
        for round_ in range(2):
            with SeqVault.open(path, "a") as vault:
                vault.append([1], small_events(100 + round_, 1))
        with SeqVault.open(path) as vault:
            assert vault.read([1])["time"].tolist() == [*range(2 * whole), 100, 101]
            assert vault.check() == []


@pytest.mark.parametrize("sync", ["always", "none"])
def test_log_garbled_at_every_byte_is_never_misread(tmp_path: Path, sync: str) -> None:
    log, ends = make_log(tmp_path / "vault", sync)
    data = bytearray(log.read_bytes())
    for offset in range(len(data)):
        garbled = bytearray(data)
        garbled[offset] ^= 0x41
        log.write_bytes(garbled)
        whole = sum(end <= offset for end in ends[1:])
        # What follows the garbled record was durable only if every append was made so.
        durable_follows = sync == "always" and whole < RECORDS - 1
        if offset < FILE.size or durable_follows:
            with pytest.raises(ValueError, match=r"log-\d+\.wal is damaged at offset \d+|format version"):
                times_of(tmp_path / "vault")
        else:
            assert times_of(tmp_path / "vault") == list(range(2 * whole)), offset


def test_log_of_single_events_cut_or_garbled_at_every_byte_keeps_what_precedes(path: Path) -> None:
    with SeqVault.create(path, SMALL, sync="none") as vault:
        (log,) = path.glob("*.wal")
        for number in range(5):
            vault.append_one(1, {"time": number, "item": number})
        data = log.read_bytes()
    size = (len(data) - FILE.size) // 5
    for offset in range(FILE.size, len(data)):
        whole = (offset - FILE.size) // size
        for changed in (data[:offset], data[:offset] + bytes([data[offset] ^ 0x41]) + data[offset + 1 :]):
            log.write_bytes(changed)
            assert times_of(path) == list(range(whole)), offset


def test_missing_log_between_others_is_noticed(path: Path) -> None:
    for step in range(3):
        with SeqVault.create(path, SMALL) if step == 0 else SeqVault.open(path, "a") as vault:
            vault.append([1], small_events(step, 1))
    sorted(path.glob("*.wal"))[1].unlink()
    with pytest.raises(ValueError, match=r"log-00000002.*is missing"):
        times_of(path)


def test_end_of_an_earlier_log_cut_is_noticed(path: Path) -> None:
    log, ends = make_log(path, "always")
    SeqVault.open(path, "a").close()
    log.write_bytes(log.read_bytes()[: ends[-2]])
    with pytest.raises(ValueError, match=r"begins with record 7, but .* before record 6"):
        times_of(path)


def test_every_byte_of_a_segment_flipped(path: Path, rng: np.random.Generator) -> None:
    with SeqVault.create(path, SMALL) as vault:
        for user in range(3):
            vault.append(np.full(30, user), small_events(0, 30))
        vault.checkpoint()
    (segment,) = path.glob("*.seg")
    data = segment.read_bytes()
    with SeqVault.open(path) as vault:
        whole = vault.read(np.arange(3))
    for offset in range(len(data)):
        flipped = bytearray(data)
        flipped[offset] ^= 1 << int(rng.integers(8))
        segment.write_bytes(flipped)
        try:
            with SeqVault.open(path) as vault:
                problems = vault.check()
                assert problems, offset
                assert str(segment) in problems[0].message
                found = vault.read(np.arange(3))
            # The directory is not needed while the index is sound: what is read must then be right.
            for name in whole.fields:
                np.testing.assert_array_equal(found[name], whole[name])
        except ValueError as error:
            named = re.search(rf"{segment.name} (is damaged at offset \d+|has format version)", str(error))
            if named is None:
                raise


def test_lost_index_is_rebuilt_with_a_warning(path: Path, rng: np.random.Generator) -> None:
    model, users, events = Model(), rng.integers(0, 9, 500), make_events(rng, 500)
    model.append(users, events)
    with SeqVault.create(path, FIELDS) as vault:
        vault.append(users, events)
        vault.checkpoint()
    (index,) = path.glob("*.idx")
    data = index.read_bytes()
    for offset in range(0, len(data), 5):
        index.write_bytes(data[:offset] + bytes([data[offset] ^ 4]) + data[offset + 1 :])
        with pytest.warns(UserWarning, match="rebuilt from the segments"):
            vault = SeqVault.open(path)
        with vault:
            model.compare(vault, np.arange(9))
            assert "index-" in vault.check()[0].message
    index.unlink()
    with pytest.warns(UserWarning, match="is missing"):
        vault = SeqVault.open(path, "a")
    with vault:
        model.compare(vault, np.arange(9))
        assert vault.check() == []


def test_an_index_of_another_version_is_rebuilt(path: Path) -> None:
    with SeqVault.create(path, SMALL) as vault:
        vault.append([1, 1, 2], small_events(0, 3))
        vault.checkpoint()
    (index,) = path.glob("*.idx")
    data = index.read_bytes()
    index.write_bytes(data[:8] + (1).to_bytes(4, "little") + data[12:])
    with pytest.warns(UserWarning, match=r"has format version 1, this release reads 2; the index is rebuilt"):
        vault = SeqVault.open(path, "a")
    with vault:
        assert vault.read([1, 2]).lengths.tolist() == [2, 1]
        assert vault.check() == []


def test_manifest_damage_and_versions(path: Path) -> None:
    SeqVault.create(path, SMALL).close()
    manifest = path / "MANIFEST"
    data = manifest.read_bytes()
    for offset in range(len(data)):
        manifest.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        with pytest.raises(ValueError, match="MANIFEST"):
            SeqVault.open(path)
    for version, cure in ((b"4", "update laser"), (b"2", "load the data into a new vault")):
        manifest.write_bytes(data.replace(b"LASERVAULT 3", b"LASERVAULT " + version))
        with pytest.raises(ValueError, match=f"has format version {version.decode()}, this release reads 3; {cure}"):
            SeqVault.open(path)


def test_second_writer_is_refused_until_the_first_is_gone(path: Path) -> None:
    code = f"from laser.seqvault import SeqVault; SeqVault.open({str(path)!r}, 'a')"
    with SeqVault.create(path, SMALL):
        with pytest.raises(ValueError, match="open for writing in process"):
            SeqVault.open(path, "a")
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "open for writing in process" in other.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("users", "change", "message"),
    [
        ([1], {"item": None}, "must have the fields"),
        ([1], {"extra": [1]}, "not known"),
        ([1, 2], {}, "one row per event"),
        ([-1], {}, "expected 0 ... 2"),
        ([1.5], {}, "integer ids"),
        (["a"], {}, "integer ids"),
        ([1], {"time": ["2020"]}, "convert them first"),
        ([1], {"time": [float("nan")]}, "convert them first"),
        ([1], {"item": [-1]}, "outside uint16"),
        ([1], {"item": [70_000]}, "outside uint16"),
    ],
)
def test_bad_appends_are_one_sentence_and_store_nothing(path: Path, users: list, change: dict, message: str) -> None:
    events = {"time": [5], "item": [3]} | change
    events = {name: values for name, values in events.items() if values is not None}
    with SeqVault.create(path, SMALL) as vault:
        with pytest.raises(ValueError, match=message) as caught:
            vault.append(users, events)
        assert "\n" not in str(caught.value)
        assert vault.stats()["events"] == 0


def test_bad_reads_and_opens(path: Path) -> None:
    with pytest.raises(ValueError, match="no vault at"):
        SeqVault.open(path)
    with pytest.raises(ValueError, match="no vault at"):
        SeqVault.open(path, "a")
    with pytest.raises(ValueError, match="timestamp"):
        SeqVault.create(path, (Field("item", "int32"),))
    with SeqVault.create(path, SMALL) as vault:
        with pytest.raises(ValueError, match="no event field 'itm'"):
            vault.read([1], fields=["itm"])
        with pytest.raises(ValueError, match="last_n is -1"):
            vault.read([1], last_n=-1)
        with pytest.raises(ValueError, match="before is"):
            vault.read([1], before=np.array([1, 2]))
        with pytest.raises(ValueError, match="before is"):
            vault.read([1], before=1.5)
        with pytest.raises(ValueError, match="a vault at"):
            SeqVault.create(path, SMALL)
        with pytest.raises(ValueError, match="open for reading"):
            SeqVault.open(path).append([1], small_events(0, 1))
    with pytest.raises(ValueError, match="is closed"):
        vault.read([1])
    with pytest.raises(ValueError, match="mode is 'w'"):
        SeqVault.open(path, "w")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sync is 'often'"):
        SeqVault.open(path, "a", sync="often")  # type: ignore[arg-type]


def test_a_failed_fsync_refuses_further_appends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SeqVault.create(path, SMALL).close()
    log = LogWriter(path, 9, Layout(SMALL), 1)
    log.write(1, 0, b"")

    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("laser.seqvault.log.os.fdatasync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        log.sync()
    with pytest.raises(ValueError, match="could not be made durable"):
        log.write(1, 0, b"")
    log.close()


def test_switch_that_may_not_be_durable_loses_neither_state(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    with SeqVault.create(path, SMALL) as vault:
        vault.append([1], small_events(0, 1))
        with monkeypatch.context() as patch:
            patch.setattr("laser.seqvault.durable.sync_directory", fail)  # after the rename of the manifest
            with pytest.raises(OSError, match="open it again"):
                vault.checkpoint()
        assert vault.read([1])["time"].tolist() == [0]
        with pytest.raises(ValueError, match="open the vault again"):
            vault.append([1], small_events(1, 1))
    assert times_of(path) == [0]
    with SeqVault.open(path, "a") as vault:
        vault.append([1], small_events(1, 1))
        assert vault.check() == []
    assert times_of(path) == [0, 1]


def test_follower_does_not_run_past_a_log_that_grows_before_the_next_begins(path: Path) -> None:
    vault, seen = SeqVault.create(path, SMALL), []

    def apply(record: Record) -> None:
        seen.append(record.sequence)
        if len(seen) == 1:  # what was read is read: now the writer adds a record, and the next one begins a log
            vault.append([1], small_events(1, 1))
            vault.close()
            with SeqVault.open(path, "a") as other:
                other.append([1], small_events(2, 1))

    vault.append([1], small_events(0, 1))
    follower = LogFollower(path, Manifest.load(path))
    for _ in range(3):
        follower.catch_up(apply)
    follower.close()
    assert seen == [1, 2, 3]


def test_compiled_checksum_equals_the_library(rng: np.random.Generator) -> None:
    words = rng.integers(0, 2**64, 100, dtype=np.uint64)
    for start, stop in ((0, 0), (0, 1), (3, 100)):
        assert int(crc32c_words(words, start, stop)) == crc32c(words[start:stop].tobytes())
