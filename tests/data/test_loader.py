"""Order, division over processes, position and threads of the loader."""

from __future__ import annotations

import gc
import shutil
import threading
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from laser.batch import Batch
from laser.data.prepared import PreparedData
from laser.seqvault import SeqVault
from tests.data.conftest import BATCHES, SIZE, assert_equal, joined, loader, loader_threads, rows

pytestmark = pytest.mark.usefixtures("no_threads_of_other_tests")


@pytest.fixture(scope="module")
def data(prepared: Path):
    with PreparedData(prepared) as opened:
        yield opened


def test_each_epoch_delivers_every_sample_once(data):
    batches = loader(data)
    assert len(batches) == BATCHES
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        found = list(batches)
        assert [len(batch) for batch in found] == [SIZE] * 16 + [32]
        assert [batch.global_size for batch in found] == [SIZE] * 16 + [32]
        assert [batch.step for batch in found] == list(range(epoch * BATCHES, (epoch + 1) * BATCHES))
        assert sorted(joined(found)) == list(range(1632))


def test_order_depends_on_seed_and_epoch_alone(data):
    batches = loader(data)
    first = rows(batches)
    assert first[0] != list(range(SIZE))
    assert rows(batches) == first, "the same epoch again"
    batches.set_epoch(1)
    second = rows(batches)
    assert second != first
    assert rows(loader(data, seed=2)) != first
    again = loader(data, batch_size=50)
    again.set_epoch(1)
    assert joined(again) == list(chain(*second))


def test_without_shuffling_samples_come_by_time(data):
    batches = loader(data, "val", shuffle=False)
    batches.set_epoch(4)
    assert joined(batches) == list(range(204))


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("batch_size", [100, 7])
def test_processes_together_see_what_one_sees(data, world_size, batch_size):
    whole = loader(data, "val", batch_size=batch_size)
    shares = [loader(data, "val", batch_size=batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    assert all(len(part) == len(whole) for part in shares)
    for one, *parts in zip(whole, *shares, strict=True):
        for name in ("row_B", "label_B", "user_B", "timestamp_B"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(one, name))
        assert {part.step for part in parts} == {one.step}
        assert {part.global_size for part in parts} == {len(one)}
        assert samples_of(one) == [sample for part in parts for sample in samples_of(part)]


def samples_of(batch: Batch) -> list[tuple]:
    """Everything a sample sees, apart from where the batch keeps it."""
    found = []
    for b, u in enumerate(batch.history_of_B.tolist()):
        own = slice(int(batch.off_U1[u]), int(batch.off_U1[u + 1]))
        history = {name: ids[own].tolist() for name, ids in batch.by_event().history.items()}
        target = {name: ids[b].tolist() for name, ids in (batch.target | batch.context).items()}
        found.append((history, batch.age_T[own].tolist(), int(batch.history_key_U[u]), target))
    return found


def test_a_process_without_samples_still_gets_every_batch(data):
    parts = [loader(data, "val", batch_size=203, rank=rank, world_size=4) for rank in range(4)]
    last = [list(part)[-1] for part in parts]
    assert [len(batch) for batch in last] == [0, 0, 0, 1]
    assert {batch.global_size for batch in last} == {1}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_threads_change_nothing(data, workers):
    for one, other in zip(loader(data, workers=0), loader(data, workers=workers, prefetch=3), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 5, BATCHES])
def test_a_new_loader_continues_where_the_state_was_taken(data, workers, taken):
    original = loader(data, workers=workers)
    original.set_epoch(2)
    whole = list(original)
    state = None
    for position, _ in enumerate(original, 1):
        if position == taken:
            state = original.state_dict()
            break
    resumed = loader(data, workers=workers)
    resumed.load_state_dict(state or {**original.state_dict(), "position": 0})
    iterator = iter(resumed)
    # Lightning announces the epoch between making the iterator and the first batch.
    resumed.set_epoch(2)
    for one, other in zip(whole[taken:], iterator, strict=True):
        assert_equal(one, other)
    resumed.set_epoch(3)
    assert len(rows(resumed)) == BATCHES


def test_what_is_prefetched_is_not_counted_as_taken(data):
    batches = loader(data, workers=4, prefetch=8)
    iterator = iter(batches)
    next(iterator)
    time.sleep(0.05)
    assert batches.state_dict()["position"] == 1
    iterator.close()


def test_resume_on_another_number_of_processes_loses_and_repeats_nothing(data):
    two = [loader(data, rank=rank, world_size=2) for rank in range(2)]
    seen = []
    for parts in zip(*two):
        seen += [row for part in parts for row in part.row_B.tolist()]
        if two[0].state_dict()["position"] == 6:
            break
    assert two[0].state_dict() == two[1].state_dict()
    three = [loader(data, rank=rank, world_size=3) for rank in range(3)]
    for part in three:
        part.load_state_dict(two[0].state_dict())
    for parts in zip(*three, strict=True):
        seen += [row for part in parts for row in part.row_B.tolist()]
    assert seen == joined(loader(data))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batch_size": 50}, "batch_size was 100 in the checkpoint and is 50 now; set it back to 100"),
        ({"seed": 9}, "seed was 1 in the checkpoint and is 9 now"),
        ({"shuffle": False}, "shuffle was True in the checkpoint and is False now"),
        ({"split": "val"}, "samples was 1632 in the checkpoint and is 204 now"),
    ],
)
def test_a_state_of_another_order_is_refused(data, changed, words):
    with pytest.raises(ValueError, match=words):
        loader(data, **changed).load_state_dict(loader(data).state_dict())


def test_leaving_early_frees_the_threads(data):
    for _ in range(3):
        for _ in loader(data, workers=4):
            assert loader_threads()
            break
        gc.collect()
        assert loader_threads() == []


def test_no_more_is_prepared_ahead_than_asked(data):
    """A slow consumer must not fill the memory."""
    batches = loader(data, workers=2, prefetch=3)
    prepared = []
    collate = batches._collate

    def counted(samples, row_B, **at):
        prepared.append(at["step"])
        return collate(samples, row_B, **at)

    batches._collate = counted
    iterator = iter(batches)
    next(iterator)
    deadline = time.monotonic() + 30
    while len(prepared) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # for a fifth that must not come
    assert sorted(prepared) == [0, 1, 2, 3]
    iterator.close()


def test_a_slow_thread_is_waited_for_only_when_its_batch_is_due(data):
    """A process that is slow at one batch keeps no other waiting as long as its prefetch lasts."""
    expected = rows(loader(data))
    batches = loader(data, workers=2, prefetch=3)
    release, prepared = threading.Event(), set()
    collate = batches._collate

    def slow_at_3(samples, row_B, **at):
        assert at["step"] != 3 or release.wait(30)
        prepared.add(at["step"])
        return collate(samples, row_B, **at)

    batches._collate = slow_at_3
    iterator = iter(batches)
    taken = [next(iterator).row_B.tolist() for _ in range(3)]
    deadline = time.monotonic() + 30
    while len(prepared) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert prepared == {0, 1, 2, 4, 5}
    release.set()
    assert taken + [batch.row_B.tolist() for batch in iterator] == [list(row) for row in expected]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_in_a_thread_is_raised_where_its_batch_would_be(prepared, tmp_path, workers):
    path = Path(shutil.copytree(prepared, tmp_path / "copy"))
    with PreparedData(path) as data:
        samples = data.split("train")
    time = samples.timestamp_N[900]
    with SeqVault.open(path / "vault", mode="a") as vault:
        vault.append([5], {"timestamp": [time], "item": np.array([81], np.uint32), "rating": np.array([1], np.uint8)})
    bad = np.flatnonzero((samples.user_N == 5) & (samples.timestamp_N > time))[0] // SIZE
    assert 9 <= bad < BATCHES - 1
    with PreparedData(path) as data:
        batches = iter(loader(data, workers=workers, shuffle=False, max_history=1000))
        for _ in range(bad):
            next(batches)
        with pytest.raises(ValueError, match=r"'item' of .*vault has id 81, expected ids up to 80"):
            next(batches)
    gc.collect()
    assert loader_threads() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size of the train loader is 0; set it to 1 or more"),
        ({"max_history": -1}, "max_history of the train loader is -1; set it to 0 or more"),
        ({"workers": -1}, "workers of the train loader is -1"),
        ({"prefetch": 0}, "prefetch of the train loader is 0"),
        ({"seed": -1}, "seed of the train loader is -1"),
        ({"world_size": 0}, "world_size of the train loader is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2 with world_size 2; expected 0 to 1"),
    ],
)
def test_bad_arguments(data, options, words):
    with pytest.raises(ValueError, match=words):
        loader(data, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to deliver to")
@pytest.mark.parametrize("workers", [0, 3])
def test_batches_on_a_gpu_are_those_of_the_host(data, workers):
    there = loader(data, workers=workers, device="cuda")
    for one, other in zip(loader(data, workers=0), there, strict=True):
        assert other.label_B.is_cuda
        assert other.on_host is not None
        assert_equal(one, replace(other.map(torch.Tensor.cpu), on_host=None, distinct_on_host={}))
