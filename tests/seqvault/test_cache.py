"""The cache: reads are the same with it, it keeps its budget, and it keeps what is asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import SeqVault
from laser.seqvault.cache import ChunkCache, Entry
from laser.seqvault.layout import Layout
from tests.seqvault.conftest import FIELDS, Model, make_events

USERS = np.arange(60)


def filled(path: Path, rng: np.random.Generator, **options: object) -> tuple[SeqVault, Model]:
    model, vault = Model(), SeqVault.create(path, FIELDS, **options)
    for step in range(3):
        users, events = rng.integers(0, 50, 1500), make_events(rng, 1500, 10**6 * step, 10**6 * (step + 1))
        events["item"] %= np.uint64(99)
        events["time"].sort()  # users with events out of order are read without the cache
        vault.append(users, events)
        model.append(users, events)
        if step < 2:
            vault.checkpoint()
    return vault, model


@pytest.mark.parametrize("budget", [1, 50_000, 100_000_000])
def test_reads_are_the_same_with_a_cache(path: Path, rng: np.random.Generator, budget: int) -> None:
    vault, model = filled(path, rng, dictionaries=["item"], cache_bytes=budget)
    with vault, SeqVault.open(path) as plain:
        for _ in range(3):
            users = rng.choice(USERS, 100)
            model.compare(vault, users, last_n=70)
            model.compare(vault, users, before=rng.integers(0, 2 * 10**6, 100), last_n=40)
            for options in ({"fields": ["tags", "item"]}, {"fields": ["item"], "ids": "codes"}, {"ids": "codes"}):
                found, wanted = vault.read(users, **options), plain.read(users, **options)
                assert found.offsets.tolist() == wanted.offsets.tolist()
                for name, values in wanted.fields.items():
                    assert found[name].dtype == values.dtype
                    np.testing.assert_array_equal(found[name], values)
            assert vault.stats()["cache_bytes"] <= budget
            late = make_events(rng, 2) | {"time": np.array([5 * 10**6, 3])}
            vault.append([7, 8], late)
            model.append(np.array([7, 8]), late)
            plain.refresh()


def test_changes_are_seen_at_once(path: Path, rng: np.random.Generator) -> None:
    vault, model = filled(path, rng, cache_bytes=10**8)
    with vault, SeqVault.open(path, cache_bytes=10**8) as reader:
        for step in range(6):
            for opened in (vault, reader):
                opened.refresh()
                for _ in range(2):
                    model.compare(opened, USERS)
            if step == 0:
                vault.checkpoint()
            if step == 1:
                vault.delete_user(3)
                model.histories.pop(3)
            if step == 2:
                vault.compact()
            if step == 3:
                events = make_events(rng, 500, 0, 3 * 10**6)
                vault.append(np.arange(500) % 50, events)
                model.append(np.arange(500) % 50, events)
            if step == 4:
                vault.checkpoint()
        assert vault.stats()["cache_hits"] > vault.stats()["cache_misses"] > 0


def test_a_second_read_of_the_same_touches_no_file(path: Path, rng: np.random.Generator) -> None:
    vault, model = filled(path, rng, cache_bytes=10**8, maintenance_rate=0)
    with vault:
        vault.checkpoint()
        vault.read(USERS)
        before = vault.stats()
        for file in path.glob("*.seg"):
            file.write_bytes(bytes(file.stat().st_size))  # in place: nothing but the cache can answer now
        model.compare(vault, USERS)
        after = vault.stats()
        assert after["cache_misses"] == before["cache_misses"]
        assert after["cache_hits"] > before["cache_hits"]
        with pytest.raises(ValueError, match="damaged at offset"):
            vault.read(USERS, where={"category": 1})


def test_threads_that_want_different_fields_never_get_wrong_values(path: Path, rng: np.random.Generator) -> None:
    vault, _ = filled(path, rng, dictionaries=["item"], cache_bytes=60_000)
    failures: list[BaseException] = []
    with vault:
        whole = vault.read(USERS)

        def read(fields: list[str], seed: int) -> None:
            try:
                own = np.random.default_rng(seed)
                for _ in range(150):
                    users = own.integers(0, 60, 20)
                    found = vault.read(users, fields=fields)
                    for index, user in enumerate(users.tolist()):
                        for name, values in found.of(index).items():
                            np.testing.assert_array_equal(values, whole.of(user)[name])
            except BaseException as error:
                failures.append(error)

        chosen = (["item"], ["weight", "tags"], ["time", "delta"], ["item", "category"])
        threads = [threading.Thread(target=read, args=(fields, seed)) for seed, fields in enumerate(chosen)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def ask(cache: ChunkCache, key: int, size: int = 600) -> bool:
    rows = cache.serving(False, {})
    (found,) = cache.find([key], rows)
    if found is None:
        cache.add([key], rows, [Entry(np.zeros(size, np.uint8))])
    return found is not None


def test_what_is_asked_for_again_survives_a_scan() -> None:
    cache = ChunkCache(100_000, Layout(FIELDS))
    for _ in range(3):
        for key in range(20):
            ask(cache, key)
    for key in range(1000, 3000):
        ask(cache, key)
        if key % 40 == 0:
            assert all(ask(cache, hot) for hot in range(20))
        assert cache.stats()["cache_bytes"] <= 100_000
    assert not ask(cache, 1000)
    assert ask(cache, 2999)


def test_entries_larger_than_the_budget_do_not_stay() -> None:
    cache = ChunkCache(1000, Layout(FIELDS))
    assert not ask(cache, 1, size=5000)
    assert not ask(cache, 1, size=5000)
    assert cache.stats()["cache_bytes"] == 0


def test_entries_of_other_fields_are_never_taken_for_each_other() -> None:
    cache, layout = ChunkCache(100_000, Layout(FIELDS)), Layout(FIELDS)
    before = cache.serving(False, {})
    after = cache.serving(False, {layout.fields[1]: np.dtype(np.uint64)})
    cache.add([1], before, [Entry(np.zeros(80, np.uint8))])
    cache.add([2], after, [Entry(np.zeros(160, np.uint8))])
    assert cache.find([1, 2], before) == [None, None]
    assert [found is None for found in cache.find([1, 2], after)] == [True, False]
