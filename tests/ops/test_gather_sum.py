"""Sums of gathered rows against the specification, forward and backward, at awkward sizes."""

from __future__ import annotations

import itertools

import pytest
import torch

from laser.ops.gather_sum import cpu, gather_sum, naive, triton

IMPLEMENTATIONS = {"cpu": cpu, "triton": triton}
EPS = torch.finfo(torch.float32).eps


def make(T: int, S: int, R: int, D: int, dtype: torch.dtype, device: torch.device, *, skewed: bool = True):
    """Rows and events; skewed: half of all slots name row 0, row R - 1 is named by none, runs of every length."""
    rows_RD = torch.randn(R, D).to(device, dtype)
    index_TS = (torch.rand(T, S).pow(3) * max(R - 1, 1)).int()
    if skewed:
        index_TS[torch.rand(T, S) < 0.5] = 0
    weight_TS = torch.rand(T, S) * (torch.rand(T, S) > 0.2)
    scale_T = (torch.rand(T) > 0.1) / 0.9
    return rows_RD, index_TS.to(device), weight_TS.to(device), scale_T.float().to(device)


def relative(value: torch.Tensor, exact: torch.Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp(min=1e-300))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("weighted", "scaled"), itertools.product([False, True], ["", "any", "survivors"]))
@pytest.mark.parametrize(
    ("T", "S", "R", "D", "dtype"),
    [
        (1, 1, 1, 1, torch.float32),
        (7, 3, 5, 16, torch.float32),
        (64, 1, 2, 40, torch.float32),
        (65, 2, 300, 24, torch.float32),
        (133, 5, 40, 130, torch.float32),
        (150, 4, 30, 64, torch.bfloat16),
        (150, 4, 30, 64, torch.float16),
    ],
)
def test_equals_naive(implementation, weighted, scaled, T, S, R, D, dtype, device):
    rows, index, weight, scale = make(T, S, R, D, dtype, device)
    survivors = float(scale.max()) if scaled == "survivors" else None
    if scaled == "any":
        scale *= torch.rand(T, device=device)
    rest = (index, weight if weighted else None, scale if scaled else None)
    upstream = torch.randn(T, D, device=device).to(dtype)

    def reference(to: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = rows.to(to).requires_grad_()
        value = naive.gather_sum(leaf, *(t if t is None or not t.is_floating_point() else t.to(to) for t in rest))
        return value.detach(), torch.autograd.grad(value, leaf, upstream.to(to))[0]

    module = IMPLEMENTATIONS[implementation]
    ours = module.forward(rows, *rest), module.backward(upstream, *rest, survivors, R)
    for name, value, exact, plain in zip(("sum", "d_rows"), ours, reference(torch.float64), reference(dtype)):
        assert value.dtype == dtype
        assert not value.isnan().any(), name
        assert relative(value, exact) <= 2 * relative(plain, exact) + 8 * EPS, name
    again = module.forward(rows, *rest), module.backward(upstream, *rest, survivors, R)
    assert all(torch.equal(a, b) for a, b in zip(ours, again)), "equal inputs gave other bits"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "lengths", [[64], [63, 1], [1, 63], [32, 64, 32], [1, 126, 1], [64, 64, 64], [200, 3, 0, 61], [5, 4800, 70, 4100]]
)
def test_runs_meet_chunks_anywhere(implementation, lengths, device):
    """Rows whose pairs begin, end or lie across the borders of chunks of 64 sorted pairs: sums of ones are counts."""
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).int()
    index = index[torch.randperm(len(index))][:, None].to(device)
    ones = torch.ones(len(index), 8, device=device)
    counts = IMPLEMENTATIONS[implementation].backward(ones, index, None, None, None, len(lengths))
    assert counts.tolist() == [[float(length)] * 8 for length in lengths]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("T", "S", "R"), [(0, 2, 3), (3, 0, 2), (0, 0, 0)])
def test_nothing(implementation, T, S, R, device):
    module = IMPLEMENTATIONS[implementation]
    index = torch.zeros(T, S, dtype=torch.int32, device=device)
    value = module.forward(torch.ones(R, 4, device=device), index, None, None)
    gradient = module.backward(torch.ones(T, 4, device=device), index, None, None, None, R)
    assert value.shape == (T, 4)
    assert gradient.shape == (R, 4)
    assert not value.any()
    assert not gradient.any()


@pytest.mark.parametrize("survivors", [None, 0.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_has_no_part_is_not_read(weighted, survivors, device):
    """Of dropped events and unused slots: whole chunks of 64 pairs, and single ones beside others."""
    index = torch.tensor([0] * 150 + [1, 2] * 50, dtype=torch.int32, device=device)[:, None]
    part = torch.cat([torch.arange(150) >= 140, torch.arange(100) % 3 > 0]).to(device)
    factor = part.float() / 2
    upstream = torch.where(part, 4.0, torch.nan)[:, None].expand(-1, 8).contiguous()
    weight, scale = (factor[:, None], None) if weighted else (None, factor)
    got = triton.backward(upstream, index, weight, scale, None if weighted else survivors, 3)
    counts = torch.zeros(3, device=device).index_add_(0, index[:, 0].long(), part.float())
    assert got.tolist() == (2 * counts[:, None].expand(-1, 8)).tolist()


def test_gradcheck():
    rows, index, weight, scale = make(9, 2, 4, 3, torch.float64, torch.device("cpu"))
    rows.requires_grad_()
    weight, scale = weight.double(), scale.double()
    assert torch.autograd.gradcheck(lambda r: gather_sum(r, index, weight, scale), (rows,))
    torch.library.opcheck(torch.ops.laser.gather_sum.default, (rows, index, weight, scale, None))


def test_the_promise_of_survivors_reaches_the_kernel(monkeypatch):
    rows, index, _, scale = make(9, 2, 4, 3, torch.float32, torch.device("cpu"))
    told, backward = [], cpu.backward
    monkeypatch.setattr(cpu, "backward", lambda *inputs: (told.append(inputs[4]), backward(*inputs))[1])
    gather_sum(rows.requires_grad_(), index, None, scale, 1 / 0.9).sum().backward()
    assert told == [1 / 0.9]


def test_mistakes():
    rows, index = torch.ones(3, 2), torch.zeros(4, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"torch\.int32 \[T, S\]"):
        gather_sum(rows, index.long())
    with pytest.raises(ValueError, match="one weight an index"):
        gather_sum(rows, index, torch.ones(4, 3))
    with pytest.raises(ValueError, match="one factor an event"):
        gather_sum(rows, index, None, torch.ones(3))
