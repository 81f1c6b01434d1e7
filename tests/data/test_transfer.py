"""Batches in one buffer, and their way to a GPU."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from laser.batch import Batch
from laser.data.collate import Collator
from laser.data.packed import Form, Packed, plain_memory
from laser.data.prepared import PreparedData
from laser.data.transfer import Transfer


def packed_from(prepared: Path, rows: np.ndarray, memory=plain_memory) -> Packed:
    with PreparedData(prepared) as data:
        samples = data.split("train").take(rows)
        return Collator(data, 20).packed(samples, rows, step=3, global_size=80, memory=memory)


@pytest.fixture
def packed(prepared: Path) -> Packed:
    return packed_from(prepared, np.arange(300, 340))


def tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    batch.map(lambda tensor: found.append(tensor) or tensor)
    return found


def assert_same(one: Batch, other: Batch) -> None:
    """Names, order of names, values, dtypes and shapes."""
    for field in (field for field in fields(Batch) if field.name != "distinct_on_host"):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, dict):
            assert list(a) == list(b), field.name
    assert (one.step, one.global_size) == (other.step, other.global_size)
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b)


@pytest.mark.parametrize("rows", [np.arange(300, 340), np.array([17]), np.arange(0)], ids=["many", "one", "none"])
def test_all_of_a_batch_lies_in_its_buffer(prepared, rows):
    packed = packed_from(prepared, rows)
    original, copy = packed.batch(), packed.batch(packed.flat.clone())
    before = original.map(torch.clone)
    assert_same(copy, before)
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors(original)} == {packed.flat.data_ptr()}
    assert all((tensor.storage_offset() * tensor.itemsize) % 128 == 0 for tensor in tensors(original))
    packed.flat.zero_()
    assert_same(copy, before)
    assert all(not tensor.any() for tensor in tensors(original))


def test_there_are_fields_of_several_dtypes_and_values(packed):
    """What the test above would otherwise not see."""
    batch = packed.batch()
    assert {tensor.dtype for tensor in tensors(batch)} == {torch.int64, torch.int32, torch.float32}
    assert any(ids.dim() == 2 for ids in batch.items.values())


def test_tensors_of_all_sizes_share_no_bytes():
    shapes = [(0,), (1,), (16,), (15, 1), (0, 3), (33, 2), (128,), (5,)]
    kinds = [np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.float32)]
    forms = [Form("context", f"{i}", kinds[i % 3], shape) for i, shape in enumerate(shapes)]
    empty = np.zeros(1, np.int64)
    packed = Packed(forms, 256, plain_memory, (empty, empty[:0]), 0, 0)
    arrays = [*packed.arrays().values(), packed.add(Form("context", "last", kinds[1], (17,)))]
    for number, values in enumerate(arrays):
        values[...] = number + 1
    views = packed._views(packed.flat)
    assert [tuple(view.shape) for view in views] == [*shapes, (17,)]
    assert all((view == number + 1).all() for number, view in enumerate(views))
    with pytest.raises(AssertionError):
        packed.add(Form("context", "too much", kinds[0], (17,)))


def test_memory_with_other_values_in_it(prepared, packed):
    """Page-locked memory is used again: no byte of a batch may be what was there before."""

    def used(size: int) -> torch.Tensor:
        return torch.full((size,), 0xA5, dtype=torch.uint8)

    assert_same(packed_from(prepared, np.arange(300, 340), used).batch(), packed.batch())


def test_offsets_and_distinct_ids_stay_on_the_host(packed):
    here, there = packed.batch(), packed.batch(packed.flat.to("meta"))
    assert {tensor.device.type for tensor in tensors(there)} == {"meta"}
    assert there.on_host is not None
    assert torch.equal(there.on_host[0], here.off_U1)
    assert torch.equal(there.on_host[1], here.history_of_B)
    assert there.distinct_on_host.keys() == here.distinct.keys() != set()
    assert all(torch.equal(ids, here.distinct[name]) for name, ids in there.distinct_on_host.items())
    kept = [*there.on_host, *there.distinct_on_host.values()]
    buffer = range(packed.flat.data_ptr(), packed.flat.data_ptr() + packed.flat.nbytes)
    assert not any(tensor.data_ptr() in buffer for tensor in kept)
    assert (here.on_host, here.distinct_on_host) == (None, {})


def test_on_a_cpu_nothing_is_copied(packed):
    transfer = Transfer("cpu")
    batch = transfer.receive(transfer.send(packed))
    assert batch.off_U1.untyped_storage().data_ptr() == packed.flat.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams need a GPU")
def test_the_current_stream_waits_for_the_copy(prepared):
    """The copy is held up by work before it in its stream; what is taken from it at once must yet be right."""
    transfer = Transfer("cuda")
    assert transfer.stream is not None
    packed = packed_from(prepared, np.arange(300, 340), transfer.memory)
    expected = tensors(packed.batch())
    assert all(tensor.is_pinned() for tensor in expected)
    transfer.receive(transfer.send(packed))  # memory is allocated once
    torch.cuda.synchronize()
    for _ in range(20):
        with torch.cuda.stream(transfer.stream):
            torch.cuda._sleep(50_000_000)
        sent = transfer.send(packed)
        assert sent.copied is not None
        assert not sent.copied.query(), "sending must not wait"
        received = transfer.receive(sent)
        copies = [tensor.clone() for tensor in tensors(received)]
        assert not sent.copied.query(), "neither must receiving"
        assert all(torch.equal(a.cpu(), b) for a, b in zip(copies, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is page-locked for a GPU")
def test_a_smaller_batch_takes_memory_that_is_there():
    transfer = Transfer("cuda")
    whole = [transfer.memory(size).untyped_storage().nbytes() for size in (1000, 10, 1200, 1000)]
    assert whole == [1250] * 4
    assert transfer.memory(1300).untyped_storage().nbytes() == 1625


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams need a GPU")
def test_memory_is_kept_until_the_current_stream_has_used_it(prepared):
    """A batch is dropped while work on it has yet to begin; the next ones must not take its memory before."""
    transfer = Transfer("cuda")
    packed, other = (packed_from(prepared, np.arange(300, 340), transfer.memory) for _ in range(2))
    other.flat.zero_()
    for _ in range(20):
        received = transfer.receive(transfer.send(packed))
        torch.cuda._sleep(50_000_000)
        late = [tensor.clone() for tensor in tensors(received)]
        del received
        for _ in range(3):
            transfer.send(other)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(late, tensors(packed.batch()), strict=True))
