"""The loader's threads from one epoch to the next."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from laser.data.loader import BatchLoader
from laser.data.prepared import PreparedData
from tests.data.conftest import BATCHES, assert_equal, loader, loader_threads, rows

pytestmark = pytest.mark.usefixtures("no_threads_of_other_tests")


@pytest.fixture(scope="module")
def data(prepared: Path):
    with PreparedData(prepared) as opened:
        yield opened


@pytest.mark.parametrize("options", [{"shuffle": False}, {"workers": 0}], ids=str)
def test_epochs_leave_nothing_behind(data, options):
    """Samples in order are those of an evaluation, which may be the only one."""
    batches = loader(data, **{"workers": 2} | options)
    prepared = watched(batches)
    for epoch in range(3):
        batches.set_epoch(epoch)
        assert len(rows(batches)) == BATCHES
        assert loader_threads() == []
    assert sorted(prepared) == list(range(3 * BATCHES))


def watched(batches: BatchLoader, before=lambda step: None) -> list[int]:
    """Numbers of the batches that are prepared, as they begin; ``before`` is called with each."""
    prepared: list[int] = []
    collate = batches._collate

    def noted(samples, row_B, **at):
        prepared.append(at["step"])
        before(at["step"])
        return collate(samples, row_B, **at)

    batches._collate = noted
    return prepared


def wait_until(there) -> None:
    deadline = time.monotonic() + 30
    while not there() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # for what must not come
    assert there()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_threads_go_on_with_the_next_epoch(data, workers):
    """While the last batch of an epoch is used, and no further than at any other time; the same threads all along."""
    batches = loader(data, workers=workers, prefetch=3)
    expected = [loader(data, workers=0) for _ in range(4)]
    prepared = watched(batches)
    names: set[str] = set()
    for epoch, plain in enumerate(expected):
        iterator = iter(batches)
        batches.set_epoch(epoch), plain.set_epoch(epoch)
        for one, other in zip(plain, iterator, strict=False):  # Lightning asks for no batch behind the last
            assert_equal(one, other)
            assert batches.state_dict() == plain.state_dict()
            names |= set(loader_threads())
        last = (epoch + 1) * BATCHES
        wait_until(lambda last=last: sorted(prepared) == list(range(last + 3)))
    assert len(names) == workers


def test_an_epoch_begun_is_left_for_any_other(data):
    """Another epoch, the same one again, or a position within the one begun."""
    batches = loader(data)
    whole = {epoch: ordered(data, epoch) for epoch in range(4)}
    for epoch in (0, 2, 2, 3, 0, 1):
        batches.set_epoch(epoch)
        assert rows(batches) == whole[epoch]
    batches.load_state_dict({**batches.state_dict(), "epoch": 2, "position": 3})
    assert rows(batches) == whole[2][3:], "an epoch that the threads have begun at its beginning"
    batches.set_epoch(3)
    assert rows(batches) == whole[3]
    assert len(loader_threads()) == 2, "no others are left"


def ordered(data: PreparedData, epoch: int) -> list[list[int]]:
    batches = loader(data, workers=0)
    batches.set_epoch(epoch)
    return rows(batches)


def test_two_iterations_at_a_time_share_no_batches(data):
    """Neither do those of an epoch that the threads have begun."""
    batches = loader(data)
    whole = [ordered(data, epoch) for epoch in range(2)]
    for epoch in range(2):
        batches.set_epoch(epoch)
        found = list(zip(batches, batches, strict=True))
        assert [rows(each) for each in zip(*found, strict=True)] == [whole[epoch]] * 2


def test_an_error_ahead_is_raised_in_the_next_epoch(data):
    def fails(step):
        if step == BATCHES + 1:
            raise ValueError("the second batch of the second epoch")

    batches = loader(data)
    watched(batches, fails)
    assert len(rows(batches)) == BATCHES
    batches.set_epoch(1)
    iterator = iter(batches)
    next(iterator)
    with pytest.raises(ValueError, match="the second batch of the second epoch"):
        next(iterator)
    assert loader_threads() == []
    assert batches.state_dict()["position"] == 1


def test_an_error_of_an_order_is_raised_where_its_epoch_begins(data, monkeypatch):
    batches = loader(data)
    order = batches._order

    def fails(epoch):
        if epoch:
            raise MemoryError(epoch)
        return order(epoch)

    monkeypatch.setattr(batches, "_order", fails)
    assert len(rows(batches)) == BATCHES
    batches.set_epoch(1)
    with pytest.raises(MemoryError):
        next(iter(batches))
    assert loader_threads() == []
