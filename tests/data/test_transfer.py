"""Batches packed into one buffer and back, and their way to a GPU."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from laser.batch import Batch
from laser.data.collate import Collator
from laser.data.prepared import PreparedData
from laser.data.transfer import Transfer, pack, unpack


@pytest.fixture(scope="module")
def batch(prepared: Path) -> Batch:
    with PreparedData(prepared) as data:
        rows = np.arange(300, 340)
        return Collator(data, 20)(data.split("train").take(rows), rows, step=3, global_size=80)


def tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    batch.map(lambda tensor: found.append(tensor) or tensor)
    return found


def assert_same(one: Batch, other: Batch) -> None:
    """Names, order of names, values, dtypes and shapes."""
    for field in fields(Batch):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, dict):
            assert list(a) == list(b), field.name
    assert (one.step, one.global_size) == (other.step, other.global_size)
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b)


def changed(batch: Batch, case: str) -> Batch:
    """The same fields with other shapes."""
    if case == "no samples":
        shorter = batch.map(lambda tensor: tensor[:0])
        return replace(shorter, off_U1=torch.zeros(1, dtype=torch.int64))
    if case == "not contiguous":
        return batch.map(lambda tensor: tensor.repeat_interleave(2, 0)[::2])
    if case == "odd sizes":
        return replace(batch, label_B=batch.label_B[:1], place={name: p[:3] for name, p in batch.place.items()})
    if case == "lists of values":
        lists = {name: ids[:, None].repeat(1, 3) for name, ids in batch.target.items() if ids.dim() == 1}
        return replace(batch, target=lists, history={**batch.history, "empty lists": batch.off_U1[:0].view(0, 3)})
    return batch


@pytest.mark.parametrize("case", ["as it is", "no samples", "not contiguous", "odd sizes", "lists of values"])
def test_unpacked_is_what_was_packed(batch, case):
    original = changed(batch, case)
    before = original.map(torch.clone)
    flat = pack(original)
    again = unpack(flat, original)
    assert_same(again, before)
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors(again)} == {flat.untyped_storage().data_ptr()}
    assert all((tensor.storage_offset() * tensor.itemsize) % 16 == 0 for tensor in tensors(again))
    flat.zero_()
    assert_same(original, before)
    assert all(not tensor.any() for tensor in tensors(again))


def test_there_are_fields_of_several_dtypes_and_values(batch):
    """What the test above would otherwise not see."""
    assert {tensor.dtype for tensor in tensors(batch)} == {torch.int64, torch.int32, torch.float32}
    assert any(ids.dim() == 2 for ids in batch.history.values())


def test_offsets_stay_on_the_host(batch):
    there = unpack(pack(batch).to("meta"), batch)
    assert {tensor.device.type for tensor in tensors(there)} == {"meta"}
    assert there.on_host is not None
    assert there.on_host[0] is batch.off_U1
    assert there.on_host[1] is batch.history_of_B
    assert unpack(pack(batch), there).on_host is there.on_host


def test_on_a_cpu_nothing_is_copied(batch):
    transfer = Transfer("cpu")
    assert transfer.receive(transfer.send(batch)) is batch


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams need a GPU")
def test_the_current_stream_waits_for_the_copy(batch):
    """The copy is held up by work before it in its stream; what is taken from it at once must yet be right."""
    transfer, expected = Transfer("cuda"), tensors(batch)
    assert transfer.stream is not None
    transfer.receive(transfer.send(batch))  # memory is allocated once
    torch.cuda.synchronize()
    for _ in range(20):
        with torch.cuda.stream(transfer.stream):
            torch.cuda._sleep(50_000_000)
        sent = transfer.send(batch)
        assert sent.copied is not None
        assert not sent.copied.query(), "sending must not wait"
        received = transfer.receive(sent)
        copies = [tensor.clone() for tensor in tensors(received)]
        assert not sent.copied.query(), "neither must receiving"
        assert all(torch.equal(a.cpu(), b) for a, b in zip(copies, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams need a GPU")
def test_memory_is_kept_until_the_current_stream_has_used_it(batch):
    """A batch is dropped while work on it has yet to begin; the next ones must not take its memory before."""
    transfer = Transfer("cuda")
    other = batch.map(torch.zeros_like)
    for _ in range(20):
        received = transfer.receive(transfer.send(batch))
        torch.cuda._sleep(50_000_000)
        late = [tensor.clone() for tensor in tensors(received)]
        del received
        for _ in range(3):
            transfer.send(other)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(late, tensors(batch), strict=True))
