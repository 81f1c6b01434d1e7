from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from laser.batch import Batch

TENSORS = ["item_of_T", "off_U1", "age_T", "history_of_B", "label_B", "user_B", "timestamp_B", "row_B", "history_key_U"]


@pytest.fixture
def batch() -> Batch:
    """The drawing of the module's docstring: three samples of two histories."""
    return Batch(
        items={"item": torch.tensor([1, 2, 3]), "tags": torch.arange(6).reshape(3, 2)},
        item_of_T=torch.tensor([1, 0, 1, 2, 1], dtype=torch.int32),
        history={"action": torch.tensor([1, 2, 2, 2, 1])},
        off_U1=torch.tensor([0, 2, 5]),
        age_T=torch.tensor([2.0, 1.0, 3.0, 2.0, 1.0]),
        history_of_B=torch.tensor([0, 1, 1]),
        target={"item": torch.tensor([7, 8, 9])},
        context={"device": torch.tensor([0, 1, 1])},
        label_B=torch.tensor([0.0, 1.0, 1.0]),
        user_B=torch.tensor([3, 4, 4]),
        timestamp_B=torch.tensor([10, 20, 20]),
        row_B=torch.tensor([5, 6, 7]),
        history_key_U=torch.tensor([-1, 1]),
        step=3,
        global_size=6,
        distinct={"item": torch.tensor([1, 2, 3, 7, 8, 9])},
        place={"item": torch.tensor([0, 1, 2, 3, 4, 5], dtype=torch.int32)},
    )


DICTS = ("items", "history", "target", "context", "distinct", "place")


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    found = {name: getattr(batch, name) for name in TENSORS}
    for name in DICTS:
        found |= {f"{name}.{key}": tensor for key, tensor in getattr(batch, name).items()}
    return found


def test_sizes(batch):
    assert len(batch) == 3
    assert batch.num_histories == 2


def test_map_reaches_every_tensor_and_leaves_the_original(batch):
    before = {name: tensor.clone() for name, tensor in tensors(batch).items()}
    after = batch.map(lambda tensor: tensor + 1)
    assert tensors(after).keys() == before.keys()
    for name, tensor in tensors(after).items():
        assert torch.equal(tensor, before[name] + 1), name
        assert torch.equal(tensors(batch)[name], before[name]), name
    assert (after.step, after.global_size) == (3, 6)


def test_no_field_is_forgotten(batch):
    """A tensor added to Batch must be named in this test, so that map and to are known to reach it."""
    others = {*DICTS, "step", "global_size", "on_host", "distinct_on_host"}
    assert {field.name for field in fields(Batch)} == {*TENSORS, *others}


def test_to_another_device_and_back(batch):
    there = batch.to("meta")
    assert {tensor.device.type for tensor in tensors(there).values()} == {"meta"}
    assert {name: tensor.shape for name, tensor in tensors(there).items()} == {
        name: tensor.shape for name, tensor in tensors(batch).items()
    }
    for again in (there, there.to("meta")):
        assert again.on_host is not None
        assert all(map(torch.equal, again.on_host, (batch.off_U1, batch.history_of_B)))
        assert again.distinct_on_host == batch.distinct
    same = batch.to(torch.device("cpu"), non_blocking=True)
    assert all(torch.equal(tensor, tensors(batch)[name]) for name, tensor in tensors(same).items())
