"""A batch against a slow, obvious one that is put together from the raw log, event by event."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from laser.data.collate import Collator, distinct_requests, history_keys
from laser.data.prepared import PreparedData
from laser.schema import Schema

WITHOUT_EVENTS = 2
"""Users that the synthetic data keeps out of the store."""


@pytest.fixture(scope="module")
def data(prepared: Path):
    with PreparedData(prepared) as opened:
        yield opened


@pytest.fixture(scope="module")
def log(prepared: Path) -> list[dict]:
    return pq.read_table(prepared / "log.parquet").to_pylist()


@pytest.fixture(scope="module")
def items(prepared: Path) -> list[dict]:
    return pq.read_table(prepared / "items.parquet").to_pylist()


def batch_of(data: PreparedData, rows: np.ndarray, max_history: int, split: str = "test"):
    samples = data.split(split)
    return Collator(data, max_history)(samples.take(rows), rows, step=3, global_size=len(rows))


def past(log: list[dict], user: int, time: int, max_history: int) -> list[dict]:
    """What may be known of a user at a time: the newest events strictly before it, oldest first."""
    seen = [e for e in log if e["user"] == user and e["timestamp"] < time and user > WITHOUT_EVENTS]
    return seen[len(seen) - min(max_history, len(seen)) :]


@pytest.mark.parametrize("max_history", [0, 1, 7, 10_000])
@pytest.mark.parametrize("split", ["train", "test"])
def test_batch_equals_the_raw_log(data, log, items, max_history, split):
    first = {"train": 0, "test": len(log) - len(data.split("test"))}[split]
    rows = np.random.default_rng(5).permutation(len(data.split(split)))[:150]
    batch = batch_of(data, rows, max_history, split)
    lengths = set()
    for b, row in enumerate(rows):
        sample = log[first + row]
        u = int(batch.history_of_B[b])
        own = slice(int(batch.off_U1[u]), int(batch.off_U1[u + 1]))
        events = past(log, sample["user"], sample["timestamp"], max_history)
        lengths.add(len(events))
        assert batch.event_ids("item")[own].tolist() == [e["item"] for e in events]
        assert batch.event_ids("rating")[own].tolist() == [e["rating"] for e in events]
        assert batch.event_ids("category")[own].tolist() == [items[e["item"]]["category"] for e in events]
        assert batch.event_ids("tags")[own].tolist() == [items[e["item"]]["tags"] for e in events]
        assert batch.age_T[own].tolist() == [sample["timestamp"] - e["timestamp"] for e in events]
        assert {name: ids[b].tolist() for name, ids in batch.target.items()} == {
            name: items[sample["item"]][name] for name in ("item", "category", "tags")
        }
        assert batch.context["device"][b] == sample["device"]
        assert batch.label_B[b] == sample["click"]
        assert batch.user_B[b] == sample["user"]
        assert batch.timestamp_B[b] == sample["timestamp"]
        assert batch.row_B[b] == row
    assert (batch.step, batch.global_size) == (3, 150)
    assert max_history == 0 or 0 in lengths, "some users have no history"
    assert max(lengths) == max_history if max_history < 10 else max(lengths) > 30


def test_types(data):
    batch = batch_of(data, np.arange(20), 5)
    floats, small = {"age_T", "label_B"}, {"place", "item_of_T", "history"}
    for name, value in vars(batch).items():
        for tensor in value.values() if isinstance(value, dict) else [value]:
            if isinstance(tensor, torch.Tensor):
                expected = torch.float32 if name in floats else torch.int32 if name in small else torch.int64
                assert tensor.dtype == expected, name
                assert tensor.is_contiguous(), name


def test_each_history_is_in_the_batch_once(data):
    rows = np.arange(len(data.split("train")))
    batch = batch_of(data, rows, 4, "train")
    requests = set(zip(batch.user_B.tolist(), batch.timestamp_B.tolist(), strict=True))
    assert batch.num_histories == len(requests) < len(rows), "the data must have ties for this to mean anything"
    assert len(set(batch.history_key_U.tolist())) == batch.num_histories


def test_ties_are_not_history(data):
    """Samples of one user at one time do not see one another's events, whatever their order in the log."""
    samples = data.split("train")
    pairs = np.stack([samples.user_N, samples.timestamp_N])
    _, inverse, counts = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    rows = np.flatnonzero((counts[inverse.ravel()] > 1) & (samples.user_N > WITHOUT_EVENTS))
    assert len(rows) > 20
    batch = batch_of(data, rows, 10_000, "train")
    assert batch.age_T.min() > 0


def test_no_samples(data):
    batch = batch_of(data, np.array([], np.int64), 5)
    assert (len(batch), batch.num_histories, batch.off_U1.tolist()) == (0, 0, [0])
    assert batch.event_ids("tags").shape == batch.target["tags"].shape == (0, 3)
    assert batch.event_ids("item").shape == batch.age_T.shape == batch.context["device"].shape == (0,)


def test_only_users_without_events(data):
    rows = np.flatnonzero(data.split("train").user_N <= WITHOUT_EVENTS)
    assert len(rows) > 1
    batch = batch_of(data, rows, 5, "train")
    assert batch.age_T.shape == (0,)
    assert batch.off_U1.tolist() == [0] * (batch.num_histories + 1)


def test_distinct_requests_against_a_dictionary():
    rng = np.random.default_rng(0)
    user_B, time_B = rng.integers(0, 9, 200), rng.integers(-3, 3, 200)
    user_U, time_U, history_of_B = distinct_requests(user_B, time_B)
    assert (user_U[history_of_B] == user_B).all()
    assert (time_U[history_of_B] == time_B).all()
    pairs = list(zip(user_U, time_U, strict=True))
    assert pairs == sorted(set(pairs))


def test_history_key_is_the_same_everywhere_and_differs_by_user_and_time():
    """Dropout masks depend on these numbers: they must not change between releases."""
    assert history_keys(np.array([0, 1, 2]), np.array([0, 5, -1])).tolist() == [
        -6411193824288604561,
        -5673377584556512041,
        -286230172052868691,
    ]
    grid = np.stack(np.meshgrid(np.arange(300), np.arange(300))).reshape(2, -1)
    assert len(set(history_keys(*grid).tolist())) == 300 * 300


def test_ages_are_exact_before_they_are_rounded(prepared, tmp_path, make_prepared):
    """At 1.6e9 ticks float32 steps by 128: the difference must be taken before the rounding."""
    plain = Schema.load(prepared / "schema.json")
    path = make_prepared(tmp_path / "us", users=5)
    Schema(plain.name, Schema.load(path / "schema.json").features, "us").save(path / "schema.json")
    with PreparedData(path) as data:
        batch = batch_of(data, np.arange(len(data.split("test"))), 10_000)
    seconds = PreparedData(path).vault.read(
        batch.user_B.numpy(), before=batch.timestamp_B.numpy(), fields=["timestamp"]
    )
    ages = np.repeat(batch.timestamp_B.numpy(), seconds.lengths) - seconds["timestamp"]
    expected = [float(np.float32(age * 1e-6)) for age in ages]
    own = np.concatenate([np.arange(batch.off_U1[u], batch.off_U1[u + 1]) for u in batch.history_of_B])
    assert batch.age_T[own].tolist() == expected
