"""Copies from addresses equal plain copies, and leave nothing of what was there."""

from __future__ import annotations

import pytest
import torch

from laser.ops.address_copy import naive
from laser.ops.address_copy.triton import BLOCK, AddressCopy

SHAPES = [(5,), (BLOCK + 3, 2), (3 * BLOCK,), (0,), (7, 3)]
DTYPES = [torch.int64, torch.int32, torch.float32, torch.int64]


def tensors(counts: list[int], dtypes: list[torch.dtype], device: torch.device) -> list[torch.Tensor]:
    shapes = [(count, *shape[1:]) for count, shape in zip(counts, SHAPES, strict=True)]
    found = [torch.randint(-(2**40), 2**40, shape, device=device) for shape in shapes]
    return [tensor.to(dtype) for tensor, dtype in zip(found, dtypes, strict=True)]


@pytest.mark.parametrize("smallest", [torch.float32, torch.bfloat16, torch.int8])
def test_copies_of_any_size(smallest: torch.dtype, device: torch.device) -> None:
    dtypes = [*DTYPES, smallest]
    there = tensors([shape[0] for shape in SHAPES], dtypes, device)
    places = [tensor.data_ptr() for tensor in there]
    copy = AddressCopy(there)
    for counts in ([5, BLOCK + 3, 3 * BLOCK, 0, 7], [2, BLOCK, BLOCK + 1, 0, 0], [0, 1, 3 * BLOCK - 1, 0, 6]):
        here = tensors(counts, dtypes, device)
        copy(torch.tensor(copy.sources(here), device=device))
        expected = [torch.ones_like(tensor) for tensor in there]
        naive.copy(here, expected)
        assert [tensor.data_ptr() for tensor in there] == places
        assert all(torch.equal(tensor, other) for tensor, other in zip(there, expected, strict=True))


def test_naive_leaves_zeros_behind() -> None:
    there = torch.ones(4, 2)
    naive.copy([torch.full((3, 2), 5.0)], [there])
    assert there.tolist() == [[5.0, 5.0]] * 3 + [[0.0, 0.0]]


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    copy = AddressCopy([torch.zeros(4, 2, device=device)])
    for source in (torch.zeros(5, 2), torch.zeros(4, 2, dtype=torch.float64), torch.zeros(2, 4).T):
        with pytest.raises(ValueError, match="cannot be copied"):
            copy.sources([source.to(device)])
