"""Histories as slices of flat arrays against the store's own reads, and batches that are made of either."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from laser.data import histories as module
from laser.data.collate import Collator, Requests, assemble
from laser.data.histories import Histories, Slices
from laser.data.prepared import PreparedData
from laser.seqvault import Field, SeqVault
from laser.seqvault.ragged import Ragged

FIELDS = (Field("timestamp", "int64"), Field("item", "uint32"), Field("tags", "int16", 3))
USERS = np.array([1, 2, 5, 9, 2**40, 2**63 - 1], np.int64)
UNKNOWN = np.array([0, 3, 2**41], np.int64)


@pytest.fixture(params=[1, 150, module.EVENTS_AT_A_TIME])
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Histories of 0 to some 3000 events with many equal times, in segments, out of order and in the log; codes for
    items, and a derived field."""
    monkeypatch.setattr(module, "EVENTS_AT_A_TIME", request.param)
    rng, fields = np.random.default_rng(3), (*FIELDS, Field("author", "int32"))
    with SeqVault.create(tmp_path / "vault", fields, dictionaries=["item"], derived={"author": "item"}) as vault:
        for count in (3000, 40, 3):
            users = rng.choice(USERS, count, p=[0.9, 0.02, 0.02, 0.02, 0.02, 0.02])
            events = {
                "timestamp": rng.integers(-20, 20, count),
                "item": rng.integers(0, 2**32, count),
                "tags": rng.integers(-(2**15), 2**15, (count, 3)),
            }
            vault.append(users, events)
            if count > 3:
                vault.checkpoint()
        vault.append([777], {"timestamp": [0], "item": [1], "tags": [[1, 2, 3]]})
        vault.delete_user(777)
        yield vault


def assert_reads_are_equal(found: Slices, wanted: Ragged) -> None:
    assert found.off_U1.tolist() == wanted.offsets.tolist()
    for field in FIELDS:
        values = found.packed(field.name)
        assert values.dtype == wanted[field.name].dtype
        assert np.array_equal(values, wanted[field.name]), field.name


@pytest.mark.parametrize("last_n", [0, 1, 7, 2**62, None])
def test_equals_the_store(vault: SeqVault, last_n: int | None) -> None:
    rng, histories = np.random.default_rng(4), Histories(vault)
    users = rng.choice(np.concatenate([USERS, UNKNOWN, [777]]), 400)
    times = rng.integers(-22, 23, 400)
    times[:4] = [-(2**63), 2**63 - 1, -20, 20]
    found = histories.before(users, times, last_n)
    assert_reads_are_equal(found, vault.read(users, before=times, last_n=last_n))
    lengths = np.diff(found.off_U1)
    assert last_n is None or lengths.max() <= last_n
    assert last_n in (0, 1) or len(set(lengths.tolist())) > 5


def test_equal_times_at_the_border_are_left_out(tmp_path: Path) -> None:
    with SeqVault.create(tmp_path / "vault", FIELDS[:2]) as vault:
        vault.append([4] * 6, {"timestamp": [1, 2, 2, 2, 3, 3], "item": [10, 11, 12, 13, 14, 15]})
        found = Histories(vault).before(np.full(4, 4), np.array([1, 2, 3, 4]), 2)
    assert found.off_U1.tolist() == [0, 0, 1, 3, 5]
    assert found.packed("item").tolist() == [10, 12, 13, 14, 15]


def test_an_empty_store_and_no_requests(tmp_path: Path) -> None:
    with SeqVault.create(tmp_path / "vault", FIELDS) as vault:
        histories = Histories(vault)
        assert histories.nbytes == Histories.nbytes_of(vault)
    for users in (np.array([1, 2]), np.array([], np.int64)):
        found = histories.before(users, np.zeros(len(users), np.int64), 5)
        assert found.off_U1.tolist() == [0] * (len(users) + 1)
        assert found.packed("tags").shape == (0, 3)


def test_they_are_decoded_a_part_at_a_time(vault: SeqVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded events of all users at once would be memory that nobody has asked for."""
    parts, read_into = list[np.ndarray](), vault.read_into

    def read(users: np.ndarray, *rest: Any, **options: Any) -> np.ndarray:
        parts.append(users)
        return read_into(users, *rest, **options)

    monkeypatch.setattr(vault, "read_into", read)
    Histories(vault)
    most, sizes = module.EVENTS_AT_A_TIME, [int(vault.lengths(users).sum()) for users in parts]
    assert np.concatenate(parts).tolist() == USERS.tolist()
    assert all(size <= most or len(users) == 1 for size, users in zip(sizes, parts, strict=True))
    joined = [size + int(vault.lengths(after)[0]) for size, after in zip(sizes, parts[1:])]
    assert all(size > most for size in joined), "no part could take one user more"


def test_their_memory_is_known_before_they_are_read(vault: SeqVault) -> None:
    histories = Histories(vault)
    assert histories.nbytes == Histories.nbytes_of(vault) > 3000 * (8 + 4 + 6)


def test_an_opened_data_set_reads_the_same_from_memory(prepared: Path) -> None:
    with PreparedData(prepared) as plain, PreparedData(prepared, cache_bytes=1 << 30) as decoded:
        samples = plain.split("test")
        requests = samples.user_N.astype(np.int64), samples.timestamp_N
        for last_n in (None, 0, 3):
            one, other = plain.read(*requests, last_n), decoded.read(*requests, last_n)
            assert one.off_U1.tolist() == other.off_U1.tolist()
            for feature in plain.schema.event:
                assert np.array_equal(one.packed(feature.name), other.packed(feature.name))
        lengths = plain.read(*requests, fields=[]).off_U1
        assert lengths.tolist() == decoded.read(*requests, fields=[]).off_U1.tolist()


def assert_same(one: Any, other: Any) -> None:
    """All tensors of two batches are equal, bit by bit."""
    for name, value in vars(one).items():
        pairs = value if isinstance(value, dict) else {"": value}
        others = getattr(other, name) if isinstance(value, dict) else {"": getattr(other, name)}
        assert list(pairs) == list(others), name
        for key, values in pairs.items():
            if isinstance(values, torch.Tensor):
                assert values.dtype == others[key].dtype, (name, key)
                assert values.numpy().tobytes() == others[key].numpy().tobytes(), (name, key)
            else:
                assert values == others[key], name


@pytest.mark.parametrize("max_history", [0, 1, 7, 10_000])
@pytest.mark.parametrize("most_marks", [0, 1 << 24])
def test_batches_are_the_same(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, max_history: int, most_marks: int
) -> None:
    monkeypatch.setattr("laser.data.distinct.MOST_MARKS", most_marks)
    with PreparedData(prepared) as plain, PreparedData(prepared, cache_bytes=1 << 30) as decoded:
        assert decoded.histories is not None
        samples, rng = plain.split("train"), np.random.default_rng(1)
        for rows in (rng.integers(0, len(samples), 300), np.repeat(rng.integers(0, 50, 5), 4), np.arange(0)):
            chosen = samples.take(rows)
            one, other = (
                Collator(data, max_history)(chosen, rows, step=2, global_size=300) for data in (plain, decoded)
            )
            assert_same(one, other)


def test_slices_in_any_order_that_overlap_or_repeat(prepared: Path) -> None:
    """Each slice in another place of the batch than in memory, events that belong to none, and no slice at all."""
    with PreparedData(prepared, cache_bytes=1 << 30) as data:
        histories, samples = data.histories, data.split("test")
        assert histories is not None
        everything = histories.before(np.arange(60), np.full(60, 2**62))
        rng = np.random.default_rng(0)
        for count in (0, 1, 40):
            begin_U, length_U = rng.integers(0, 400, count), rng.integers(0, 60, count)
            begin_U[10:20], length_U[10:20] = begin_U[:10], length_U[:10]
            off_U1 = np.concatenate([[0], np.cumsum(length_U)])
            sliced = Slices(everything.fields, begin_U, off_U1)
            packed = Slices.of(Ragged({f.name: sliced.packed(f.name) for f in data.schema.event}, off_U1))
            rows = np.arange(3 if count else 0)
            time_U, history_of_B = np.full(count, 2**40), np.zeros(len(rows), np.int64)
            requests = Requests(np.arange(count), time_U, history_of_B, sliced, "memory")
            one, other = (
                assemble(data.schema, data.items, samples.take(rows), r, rows, step=0, global_size=3).batch()
                for r in (requests, replace(requests, events=packed))
            )
            assert_same(one, other)


@pytest.mark.parametrize("name", ["item", "rating"])
def test_an_id_out_of_range_is_refused_only_where_it_is_read(prepared: Path, name: str) -> None:
    """As from the store, whose other chunks are not looked at: the message names the ids of the batch."""
    with PreparedData(prepared, cache_bytes=1 << 30) as data:
        assert data.histories is not None
        id_N = data.histories._fields[name]
        rows = np.arange(len(data.split("test")))
        samples = data.split("test").take(rows)
        events = data.read(samples.user_N.astype(np.int64), samples.timestamp_N, 2)
        used = np.unique(np.concatenate([np.arange(b, b + n) for b, n in zip(events.begin_U, np.diff(events.off_U1))]))
        unused = np.setdiff1d(np.arange(len(id_N)), used)
        collate = Collator(data, 2)
        before = collate(samples, rows, step=0, global_size=len(rows))
        id_N[unused] = 201
        assert_same(collate(samples, rows, step=0, global_size=len(rows)), before)
        id_N[used[-1]] = 200
        with pytest.raises(ValueError, match=rf"'{name}' of .*vault has id 200, expected ids up to \d+,"):
            collate(samples, rows, step=0, global_size=len(rows))


def test_an_event_that_is_not_older_is_refused(prepared: Path) -> None:
    with PreparedData(prepared, cache_bytes=1 << 30) as data:
        rows = np.arange(50)
        samples = data.split("test").take(rows)
        user_U, time_U = samples.user_N.astype(np.int64), samples.timestamp_N
        events = data.read(user_U, time_U, 5)
        late = int(np.flatnonzero(np.diff(events.off_U1))[-1])
        time_U = time_U.copy()
        time_U[late] = events["timestamp"][events.begin_U[late] + np.diff(events.off_U1)[late] - 1]
        requests = Requests(user_U, time_U, rows, events, "memory")
        with pytest.raises(AssertionError, match="the store returned an event that is not older than its sample"):
            assemble(data.schema, data.items, samples, requests, rows, step=0, global_size=50)
