"""Segment read-out copies values, so every implementation must agree with naive to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from laser.ops.segment_readout import cpu, naive, segment_readout, triton

IMPLEMENTATIONS = {"cpu": cpu, "triton": triton}
COUNTS = [0, 1, 3, 16, 17, 63, 0]


def offsets(counts: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0).to(device)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("newest", [0, 1, 4])
@pytest.mark.parametrize(
    ("D", "dtype"), [(1, torch.float32), (40, torch.float32), (512, torch.float32), (8, torch.float16)]
)
def test_equals_naive(implementation: str, newest: int, D: int, dtype: torch.dtype, device: torch.device) -> None:
    seg_off = offsets(COUNTS, device)
    # Rounded to a few values, so that equal maxima are common: the gradient goes to the oldest.
    seg = torch.randn(int(seg_off[-1]), D).round().to(device, dtype).requires_grad_()
    expected = naive.segment_readout(seg, seg_off, newest)
    upstream = [torch.randn(value.shape).round().to(device, dtype) for value in expected]
    gradient = torch.autograd.grad(expected, seg, upstream)[0]
    *output, row = IMPLEMENTATIONS[implementation].forward(seg.detach(), seg_off, newest)
    for name, value, reference in zip(["max", "newest"], output, expected, strict=True):
        assert torch.equal(value, reference), name
    ours = IMPLEMENTATIONS[implementation].backward(*upstream, row, seg_off, len(seg))
    assert torch.equal(ours, gradient)


def test_cpu_joins_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    seg_off = offsets([70, 0, 40], device)
    seg = torch.randn(110, 4).round()
    whole = cpu.forward(seg, seg_off, 2)
    for tiles in (1, 2, 3):
        monkeypatch.setattr("laser.ops.chunks.CHUNK_BYTES", tiles * 16 * 4 * 4)
        for value, expected in zip(cpu.forward(seg, seg_off, 2), whole, strict=True):
            assert torch.equal(value, expected)


@pytest.mark.parametrize("function", ["naive", "op"])
def test_by_hand(function: str) -> None:
    op = {"naive": naive.segment_readout, "op": segment_readout}[function]
    seg = torch.tensor([[-1.0, -2.0], [-3.0, -1.0], [-9.0, -9.0]])
    maximum, newest = op(seg, torch.tensor([0, 2, 2, 3]), 2)
    assert maximum.tolist() == [[-1.0, -1.0], [0.0, 0.0], [-9.0, -9.0]]
    assert newest.tolist() == [
        [[-3.0, -1.0], [-1.0, -2.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[-9.0, -9.0], [0.0, 0.0]],
    ]


@pytest.mark.parametrize("counts", [[], [0, 0]])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing(implementation: str, counts: list[int], device: torch.device) -> None:
    seg, seg_off = torch.zeros(0, 4, device=device), offsets(counts, device)
    maximum, newest, row = IMPLEMENTATIONS[implementation].forward(seg, seg_off, 2)
    assert maximum.shape == (len(counts), 4)
    assert newest.shape == (len(counts), 2, 4)
    assert not maximum.any()
    assert not newest.any()
    assert IMPLEMENTATIONS[implementation].backward(maximum, newest, row, seg_off, 0).shape == (0, 4)


def test_gradcheck() -> None:
    seg = torch.randn(25, 3, dtype=torch.float64, requires_grad=True)
    seg_off = offsets([20, 0, 5], torch.device("cpu"))
    assert torch.autograd.gradcheck(lambda s: segment_readout(s, seg_off, 3), (seg,))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        segment_readout(torch.zeros(2, 3), torch.tensor([0, 2]), -1)
    with pytest.raises(ValueError, match=r"torch\.int64"):
        segment_readout(torch.zeros(2, 3), torch.tensor([0, 2], dtype=torch.int32), 1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_segments_of_no_sample_have_no_part_in_it(implementation: str, device: torch.device) -> None:
    """They lie behind the last sample's. Their gradient is 0, not what memory happened to hold."""
    ours, seg_off = IMPLEMENTATIONS[implementation], offsets([3, 0, 20], device)
    seg = torch.cat([torch.randn(23, 8), torch.full((5, 8), torch.nan)]).to(device)
    maximum, newest, row = ours.forward(seg, seg_off, 2)
    alone = ours.forward(seg[:23], seg_off, 2)
    assert all(map(torch.equal, (maximum, newest), alone))
    d_seg = ours.backward(torch.ones_like(maximum), torch.ones_like(newest), row, seg_off, len(seg))
    assert d_seg[23:].tolist() == [[0.0] * 8] * 5
