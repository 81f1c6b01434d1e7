"""Work in the background: it reclaims room and keeps files few, and neither reads nor appends notice."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import Field, SeqVault
from laser.seqvault.rewriting import Rewrite
from laser.seqvault.segment import file_name
from tests.seqvault.conftest import FIELDS, Model, make_events

SMALL = (Field("time", "int64"), Field("item", "uint32"))


def small(times: np.ndarray) -> dict[str, np.ndarray]:
    return {"time": times, "item": times.astype(np.uint32)}


def wait_until(done: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end, "the background did not get there"
        time.sleep(0.01)


def test_dead_chunks_are_reclaimed_and_segments_stay_few(path: Path) -> None:
    with SeqVault.create(path, SMALL) as vault:
        for step in range(40):
            times = np.arange(step * 80, step * 80 + 80)
            vault.append(times % 8, small(times))
            vault.checkpoint()
        wait_until(lambda: vault.stats()["segments"] < 8 and vault.stats()["live_share"] > 0.45)
        found = vault.read(np.arange(8))
        for user in range(8):
            np.testing.assert_array_equal(found.of(user)["time"], np.arange(user, 3200, 8))
        assert vault.check() == []
        assert len(list(path.glob("*.seg"))) == vault.stats()["segments"]
    with SeqVault.open(path) as vault:
        assert vault.read(np.arange(8)).lengths.tolist() == [400] * 8


def test_users_in_many_small_chunks_are_packed_anew(path: Path) -> None:
    with SeqVault.create(path, SMALL, maintenance_rate=0) as vault:
        for size in (625, 125, 25, 5, 1):  # each too large for the next to be merged with it
            vault.append(np.full(size, 7), small(np.arange(size)))
            vault.append(np.full(size, 8), small(np.arange(size) - 1000 * size))
            vault.checkpoint()
        kept = vault.read([7, 8])
        assert vault.stats()["most_extents"] == 5
    with SeqVault.open(path, "a") as vault:
        vault.append([1], small(np.arange(1)))
        vault.checkpoint()
        wait_until(lambda: vault.stats()["most_extents"] <= 3)
        found = vault.read([7, 8])
        np.testing.assert_array_equal(found["time"], kept["time"])
        assert vault.check() == []


def test_deleted_users_stay_deleted_when_their_segments_are_rewritten(path: Path, rng: np.random.Generator) -> None:
    model, users = Model(), np.arange(30)
    with SeqVault.create(path, FIELDS, low_water=0.9) as vault:
        for step in range(30):
            batch, events = rng.integers(0, 30, 60), make_events(rng, 60, step, step + 20)
            vault.append(batch, events)
            model.append(batch, events)
            vault.delete_user(step)
            model.histories.pop(step, None)
            if step % 2:
                vault.checkpoint()
            model.compare(vault, users)
        wait_until(lambda: vault.stats()["segments"] < 8)
        model.compare(vault, users)
        assert vault.check() == []
    with SeqVault.open(path) as vault:
        model.compare(vault, users)


def test_a_rewritten_segment_still_says_who_was_deleted(path: Path) -> None:
    with SeqVault.create(path, SMALL, maintenance_rate=0) as vault:
        vault.append([1, 1, 2], small(np.arange(3)))
        vault.checkpoint()
        vault.delete_user(1)
        vault.append([3], small(np.arange(1)))
        vault.checkpoint()
        writer = vault._writing()
        catalog = writer.catalog
        run = catalog.manifest.segments[1:]
        opened = [catalog.files.segments[entry.slot] for entry in run]
        rewrite = Rewrite(run, opened, catalog.index, first_of_all=False, breathe=lambda copied: None)
        writer.replace_run(rewrite, catalog.stage(rewrite.blocks()))
        assert vault.read([1, 2, 3]).lengths.tolist() == [0, 1, 1]
        assert vault.check() == []
    for index in path.glob("*.idx"):
        index.unlink()
    with pytest.warns(UserWarning, match="rebuilt from the segments"):
        vault = SeqVault.open(path)
    with vault:
        assert vault.read([1, 2, 3]).lengths.tolist() == [0, 1, 1]


def test_a_reader_keeps_segments_that_have_been_replaced(path: Path, rng: np.random.Generator) -> None:
    model, users = Model(), np.arange(20)
    with SeqVault.create(path, FIELDS) as writer:
        for step in range(24):
            batch, events = rng.integers(0, 20, 100), make_events(rng, 100)
            writer.append(batch, events)
            model.append(batch, events)
            if step == 3:
                writer.checkpoint()
                reader, before = SeqVault.open(path), writer.read(users)
            if step > 3:
                writer.checkpoint()
        wait_until(lambda: not (path / file_name(1)).exists() and writer.stats()["segments"] < 8)
        with reader:
            for name, values in before.fields.items():
                np.testing.assert_array_equal(reader.read(users)[name], values)
            reader.refresh()
            model.compare(reader, users)
            assert reader.check() == []


def test_reads_and_appends_go_on_while_the_background_works(path: Path) -> None:
    """Two readers see every user's events as a whole number of rounds, never fewer than before."""
    done, failures = threading.Event(), []

    def read() -> None:
        try:
            seen = 0
            while not done.is_set():
                found = vault.read(np.arange(50))
                lengths = found.lengths
                assert lengths.min() >= seen
                seen = int(lengths.min())
                assert found.of(0)["time"].tolist() == list(range(len(found.of(0)["time"])))
        except BaseException as error:
            failures.append(error)

    with SeqVault.create(path, SMALL, tail_bytes=30_000, low_water=0.9) as vault:
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for step in range(400):
            vault.append(np.arange(50), small(np.full(50, step)))
        done.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert vault.read([49])["time"].tolist() == list(range(400))
        assert vault.check() == []


def test_rate_holds_back_copying_but_not_closing(path: Path) -> None:
    with SeqVault.create(path, SMALL, maintenance_rate=1.0) as vault:
        for step in range(20):
            times = np.arange(step * 80, step * 80 + 80)
            vault.append(times % 8, small(times))
            vault.checkpoint()
        assert vault.stats()["segments"] > 1  # those without a live chunk go without copying
        begin = time.monotonic()
        vault.compact()
        assert vault.stats()["segments"] == 1
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    ("option", "message"), [({"maintenance_rate": -1}, "bytes a second"), ({"low_water": 1}, "0.9")]
)
def test_options_are_checked(path: Path, option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeqVault.create(path, SMALL, **option)
