"""Orders and shares: exact, deterministic, and as even or as close together as they promise."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from laser.data.loader import BatchLoader
from laser.data.order import Order, balanced_share, history_lengths, permuted, requests
from laser.data.prepared import PreparedData

WORLD_SIZE = 4


@pytest.fixture(scope="module")
def data(prepared: Path):
    with PreparedData(prepared) as opened:
        yield opened


def loader(data: PreparedData, order: Order, rank: int = 0, world_size: int = 1) -> BatchLoader:
    options = {"batch_size": 128, "max_history": 20, "shuffle": True, "seed": 1, "workers": 0}
    return BatchLoader(data, "train", **options, order=order, rank=rank, world_size=world_size)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_lengths_are_those_of_the_batches(data):
    lengths = history_lengths(data, data.split("train"), 20)
    assert (lengths.min(), lengths.max()) == (0, 20)
    for batch in loader(data, Order()):
        assert lengths[batch.row_B].tolist() == batch.off_U1.diff()[batch.history_of_B].tolist()


def test_a_window_moves_samples_by_no_more(data):
    order = permuted(1000, Order(window=50), None, rng())
    assert sorted(order) == list(range(1000))
    moved = np.abs(order.astype(int) - np.arange(1000))
    assert 10 < moved.max() <= 50
    assert not np.array_equal(order, permuted(1000, Order(window=50), None, np.random.default_rng(4)))


@pytest.mark.parametrize("window", [0, 200])
def test_requests_stay_together(data, window):
    samples = data.split("train")
    request_N = requests(samples)
    assert len(np.unique(request_N)) == len({*zip(samples.user_N.tolist(), samples.timestamp_N.tolist())})
    order = permuted(len(samples), Order(window=window, group_requests=True), request_N, rng())
    assert sorted(order) == list(range(len(samples)))
    changes = np.count_nonzero(np.diff(request_N[order]))
    assert changes == len(np.unique(request_N)) - 1 < len(samples) - 1
    assert not np.array_equal(order, np.sort(order))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 301])
def test_shares_are_all_places_once(count):
    random = rng()
    request = random.integers(0, max(count // 2, 1), count)
    length = random.integers(0, 1000, max(count, 1))[request] if count else np.zeros(0, int)
    shares = [balanced_share(length, request, rank, WORLD_SIZE) for rank in range(WORLD_SIZE)]
    assert sorted(chain(*(share.tolist() for share in shares))) == list(range(count))
    owners = [set(request[share]) for share in shares]
    assert sum(map(len, owners)) == len(set(request))


def test_events_are_balanced_and_samples_unchanged(data):
    def events(order: Order) -> tuple[np.ndarray, list[list[int]]]:
        ranks = [list(loader(data, order, rank, WORLD_SIZE)) for rank in range(WORLD_SIZE)]
        steps = [sorted(chain(*(batch.row_B.tolist() for batch in step))) for step in zip(*ranks)]
        return np.array([[len(batch.age_T) for batch in step] for step in zip(*ranks)][:-1]), steps

    (plain, expected), (even, found) = events(Order()), events(Order(balance_events=True))
    assert found == expected
    excess = [float((counts.max(1) / counts.mean(1)).mean()) - 1 for counts in (plain, even)]
    assert excess[1] < 0.02 < excess[0]


def test_a_balanced_and_grouped_run_resumes_on_other_processes(data):
    order = Order(window=300, group_requests=True, balance_events=True)
    whole = [batch.row_B.tolist() for batch in loader(data, order)]
    first = loader(data, order)
    for _, _batch in zip(range(4), first):
        pass
    resumed = [loader(data, order, rank, 2) for rank in range(2)]
    for each in resumed:
        each.load_state_dict(first.state_dict())
    steps = zip(*resumed, strict=True)
    assert [sorted(chain(*(batch.row_B.tolist() for batch in step))) for step in steps] == [
        sorted(s) for s in whole[4:]
    ]


def test_another_order_cannot_resume(data):
    state = loader(data, Order(window=10)).state_dict()
    with pytest.raises(ValueError, match=r"window was 10.*is 20 now"):
        loader(data, Order(window=20)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"group_requests was True.*is None now"):
        loader(data, Order()).load_state_dict(loader(data, Order(group_requests=True)).state_dict())
    with pytest.raises(ValueError, match=r"window is -1"):
        Order(window=-1)
