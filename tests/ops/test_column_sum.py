"""Sums over rows, the gradient of a bias: exact where they can be, in float32, the same every time. And rows of it."""

from __future__ import annotations

import pytest
import torch

from laser.ops.linear import triton

BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16


@pytest.mark.parametrize("N", [1, 511, 513, 2048, 2049, 3000])
@pytest.mark.parametrize(("M", "D"), [(1, 1), (1, 40), (3, 16), (2, 140)])
def test_column_sum(N: int, M: int, D: int, device: torch.device) -> None:
    """Of as many rows as one launch takes, and of one more; whole numbers, which have one sum only."""
    x_MND = torch.randint(-9, 9, (M, N, D), device=device).float()
    assert torch.equal(triton.column_sum(x_MND), x_MND.sum(1))
    beside = torch.cat([x_MND, torch.full_like(x_MND, torch.nan)], 2)
    beside = torch.cat([beside, torch.full_like(beside, torch.nan)], 1)[:, :N, :D]
    assert torch.equal(triton.column_sum(beside), x_MND.sum(1))
    by_rows = x_MND.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(triton.column_sum(by_rows), x_MND.sum(1))


@pytest.mark.parametrize("programs", [1, 2, 7, 64, 1024])
def test_programs_take_turns(programs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs with many tiles each, and more parts than a tile of the last launch has rows."""
    monkeypatch.setattr(triton, "MOST_PROGRAMS", programs)
    monkeypatch.setattr(triton, "FEW_ROWS", 100)
    monkeypatch.setattr(triton, "PART_ELEMENTS", 64)
    monkeypatch.setattr(triton, "WHOLE_ROWS", 32)
    x_MND = torch.randint(-9, 9, (2, 301, 24), device=device).float()
    assert torch.equal(triton.column_sum(x_MND), x_MND.sum(1))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize("rows", [1000, 3072])
def test_sums_are_float32(rows: int, dtype: torch.dtype, device: torch.device) -> None:
    """In half precision 1000 ones and more would not be a sum of ones."""
    x_1ND = torch.ones(1, rows, 3, dtype=dtype, device=device)
    assert triton.column_sum(x_1ND).tolist() == [[rows] * 3]


@pytest.mark.parametrize("N", [1000, 3000])
def test_equal_bits(N: int, device: torch.device) -> None:
    x_MND = torch.randn(2, N, 20, device=device)
    first = triton.column_sum(x_MND)
    assert torch.equal(triton.column_sum(x_MND), first)
    torch.testing.assert_close(first.double(), x_MND.double().sum(1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("M", "N", "D"), [(1, 1, 1), (3, 33, 5), (2, 64, 130), (2, 0, 4)])
def test_repeated(M: int, N: int, D: int, device: torch.device) -> None:
    row_MD = torch.randn(D, M, device=device).T
    assert torch.equal(triton.repeated(row_MD, N), row_MD[:, None].expand(M, N, D))
