"""Reads that filter, that fill the caller's arrays, and that ask for the same twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import SeqVault, fetching
from tests.seqvault.conftest import FIELDS, Model, make_events

USERS = np.array([3, 1, 2, 9])


def filled(path: Path, rng: np.random.Generator, ordered: bool = True, **options: object) -> SeqVault:
    """Three users with several chunks, a part of the events in segments, a part in memory."""
    vault = SeqVault.create(path, FIELDS, **options)
    for step, size in enumerate((9000, 700, 80)):
        events = make_events(rng, size, 10**6 * step, 10**6 * (step + 1))
        if ordered:
            events["time"].sort()
        vault.append(rng.integers(1, 4, size), events | {"item": events["item"] % np.uint64(40)})
        if step < 2:
            vault.checkpoint()
    return vault


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("dictionaries", [(), ("item", "category", "delta")])
@pytest.mark.parametrize(
    "where",
    [
        {"category": 3},
        {"category": [1, 8, 3], "item": [5, 6, 7, 8, 9, 39, 2**64 - 1]},
        {"delta": list(range(-400, -100))},
        {"category": [], "item": 1},
        {"category": 70_000},
        {"time": np.arange(480_000, 520_000)},
    ],
)
def test_filtered_reads_equal_filtering_afterwards(
    path: Path, rng: np.random.Generator, where: dict, dictionaries: tuple, ordered: bool
) -> None:
    with filled(path, rng, ordered, dictionaries=dictionaries) as vault:
        for before in (None, 500_000, np.array([2_500_000, 1_000_100, 10, 5])):
            whole = vault.read(USERS, before=before)
            kept = [np.isin(whole[name], np.asarray(values)) for name, values in where.items()]
            keep = np.logical_and.reduce(kept)
            for last_n in (None, 0, 1, 20, 500, 4000):
                found = vault.read(USERS, before=before, last_n=last_n, where=where, fields=["tags", "item", "time"])
                for user in range(len(USERS)):
                    rows = slice(whole.offsets[user], whole.offsets[user + 1])
                    for name, values in found.of(user).items():
                        own = whole[name][rows][keep[rows]]
                        newest = own if last_n is None else own[max(0, len(own) - last_n) :]
                        np.testing.assert_array_equal(values, newest)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_no_fields_are_counts(path: Path, rng: np.random.Generator, ordered: bool, cache_bytes: int) -> None:
    with filled(path, rng, ordered, cache_bytes=cache_bytes) as vault:
        for options in ({}, {"before": 500_000, "last_n": 20}, {"before": 2_500_000, "where": {"category": [1, 3]}}):
            found = vault.read(USERS, fields=[], **options)
            assert found.fields == {}
            np.testing.assert_array_equal(found.offsets, vault.read(USERS, **options).offsets)


def test_filtered_reads_stop_at_the_chunk_that_suffices(path: Path, rng: np.random.Generator) -> None:
    with SeqVault.create(path, FIELDS) as vault:
        vault.append(np.full(30_000, 1), make_events(rng, 30_000))
        vault.compact()
        (segment,) = path.glob("*.seg")
        damaged = bytearray(segment.read_bytes())
        damaged[len(damaged) // 3] ^= 1  # in a chunk of older events
        segment.write_bytes(damaged)
        assert vault.read([1], last_n=50, where={"category": 3}).lengths.tolist() == [50]
        with pytest.raises(ValueError, match="damaged at offset"):
            vault.read([1], where={"category": 3})


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"brand": 1}, "no event field 'brand'"),
        ({"weight": 1}, r"'weight' \(float32 x 1\) cannot be filtered by"),
        ({"tags": 1}, r"'tags' \(int16 x 3\) cannot be filtered by"),
        ({"category": 0.5}, r"where\['category'\] is 0.5; expected a whole"),
        ({"category": [[1]]}, r"is \[\[1\]\]; expected a whole"),
    ],
)
def test_filters_that_make_no_sense(path: Path, rng: np.random.Generator, where: dict, message: str) -> None:
    with filled(path, rng) as vault, pytest.raises(ValueError, match=message):
        vault.read(USERS, where=where)


def test_a_chunk_that_many_requests_use_is_fetched_once(
    path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[int] = []
    fetch = fetching.fetch_chunks
    monkeypatch.setattr(
        "laser.seqvault.reading.fetch_chunks",
        lambda asked, *rest: (places.extend(asked.tolist()), fetch(asked, *rest))[1],
    )
    with SeqVault.create(path, FIELDS) as vault:
        model, events = Model(), make_events(rng, 900)
        vault.append(np.full(900, 1), events)
        model.append(np.full(900, 1), events)
        vault.checkpoint()
        users, cuts = np.full(40, 1), np.repeat(np.arange(0, 10**6, 50_000), 2)
        model.compare(vault, users, cuts, last_n=300)
        assert len(places) == 1


@pytest.mark.parametrize("align", ["left", "right"])
def test_padded_rows_equal_a_ragged_read(path: Path, rng: np.random.Generator, align: str) -> None:
    with filled(path, rng, dictionaries=["item"]) as vault:
        found = vault.read(USERS, last_n=1500, ids="codes")
        out = {name: np.empty((4, 1500, *values.shape[1:]), values.dtype) for name, values in found.fields.items()}
        lengths = vault.read_into(USERS, out, align=align, ids="codes")
        assert lengths.tolist() == found.lengths.tolist() == [1500, 1500, 1500, 0]
        for name, values in found.fields.items():
            np.testing.assert_array_equal(out[name][:3].reshape(-1, *values.shape[1:]), values)


def test_rows_of_a_larger_buffer_are_filled_in_place(path: Path, rng: np.random.Generator) -> None:
    with filled(path, rng) as vault:
        memory = np.full((8, 20), 77, np.uint64)
        lengths = vault.read_into(USERS, {"item": memory[2:6]}, before=2_000_100, last_n=15, fill=9)
        assert lengths.tolist() == [15, 15, 15, 0]
        assert (memory[[0, 1, 6, 7]] == 77).all()
        assert (memory[2:5, :5] == 9).all()
        assert (memory[5] == 9).all()
        np.testing.assert_array_equal(memory[2:5, 5:].ravel(), vault.read(USERS, before=2_000_100, last_n=15)["item"])


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ({}, {}, "out is empty"),
        ({"item": np.zeros((4, 5), np.int64)}, {}, "expected a contiguous numpy array of uint64"),
        ({"item": np.zeros((4, 5), np.uint64).T}, {}, "expected 4 rows of one length"),
        ({"item": np.zeros((5, 4), np.uint64).T}, {}, "contiguous"),
        ({"item": np.zeros((4, 5, 1), np.uint64)}, {}, r"shape \(4, 5, 1\); expected \(4, 5\)"),
        ({"item": np.zeros((4, 5), np.uint64), "delta": np.zeros((4, 6), np.int32)}, {}, "rows of one length"),
        ({"item": np.zeros((4, 5), np.uint64), "tags": np.zeros((4, 5, 2), np.int16)}, {}, "'tags'"),
        ({"item": np.zeros((4, 5), np.uint64)}, {"ids": "codes"}, "array of int32"),
        (
            {"item": np.zeros(29, np.uint64)},
            {"align": "packed", "last_n": 10},
            r"shape \(29,\); expected at least \(30,\)",
        ),
        ({"item": np.zeros((4, 5), np.uint64)}, {"align": "middle"}, "align is 'middle'"),
        ({"item": [[0] * 5] * 4}, {}, "is list; expected"),
        ({"item": np.zeros((4, 5), np.uint64)}, {"fill": -1}, "fill is -1, which uint64 of field 'item' cannot hold"),
        ({"brand": np.zeros((4, 5), np.uint64)}, {}, "no event field 'brand'"),
    ],
)
def test_arrays_that_do_not_fit_are_named_and_left_alone(
    path: Path, rng: np.random.Generator, out: dict, options: dict, message: str
) -> None:
    with filled(path, rng, dictionaries=["item"]) as vault:
        with pytest.raises(ValueError, match=message):
            vault.read_into(USERS, out, **options)
        assert all(not np.any(values) for values in out.values())


def test_read_only_arrays_are_refused(path: Path, rng: np.random.Generator) -> None:
    memory = np.zeros((4, 5), np.uint64)
    memory.flags.writeable = False
    with filled(path, rng) as vault, pytest.raises(ValueError, match="read-only"):
        vault.read_into(USERS, {"item": memory})
