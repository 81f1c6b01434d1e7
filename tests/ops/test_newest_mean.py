"""Mean of the newest events: the kernels against float64 naive, both outputs' gradients together and each alone.

Legend of shape suffixes: U distinct histories; T history events, packed; D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from laser.ops.newest_mean import NewestMean, naive, newest_mean, triton

SURPLUS = 5
NAMES = ["x", "mean", "d_x"]


def former(x_TD: Tensor, off_U1: Tensor, newest: int) -> Tensor:
    """The mean as the model computed it before there was an op: on the CPU its bits are kept."""
    length_U = off_U1.diff()
    if x_TD.shape[0] == 0:
        return x_TD.sum(0).expand(length_U.shape[0], -1)
    rank_N = torch.arange(newest, device=x_TD.device)
    within_UN = rank_N < length_U[:, None]
    index_UN = torch.where(within_UN, off_U1[1:, None] - 1 - rank_N, 0)
    x_UND = x_TD.index_select(0, index_UN.flatten()).view(*index_UN.shape, -1) * within_UN.to(x_TD.dtype)[..., None]
    return x_UND.sum(1) / length_U.clamp(1, newest).to(x_TD.dtype)[:, None]


def offsets(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device)


def awkward(newest: int) -> list[int]:
    return [0, 1, 3, newest - 1, newest, newest + 1, 250, 0]


def inputs(lengths: Sequence[int], D: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """x_TD with some events behind the last history, off_U1, and gradients of both outputs."""
    T, U = sum(lengths) + SURPLUS, len(lengths)
    x_TD, d_out_TD, d_mean_UD = (torch.randn(rows, D).to(device, dtype) for rows in (T, T, U))
    return x_TD, offsets(lengths, device), d_out_TD, d_mean_UD


def fused(x_TD: Tensor, off_U1: Tensor, newest: int, in_place: bool = False) -> tuple[Tensor, Tensor]:
    return NewestMean.apply(x_TD, off_U1, newest, x_TD.dtype, in_place)


def run(function, case: tuple[Tensor, ...], newest: int, used: tuple[bool, ...] = (True, True)) -> list[Tensor]:
    """Outputs, and the events' gradient where only some outputs are used."""
    x_TD, off_U1, *upstream = case
    leaf = x_TD.detach().requires_grad_()
    outputs = function(leaf, off_U1, newest)
    pairs = [pair for pair, use in zip(zip(outputs, upstream, strict=True), used, strict=True) if use]
    gradient = torch.autograd.grad([out for out, _ in pairs], leaf, [d.to(out.dtype) for out, d in pairs])[0]
    return [*(out.detach() for out in outputs), gradient]


def widened(case: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in case)


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def truncated(value: Tensor) -> Tensor:
    """To bfloat16 as Triton's interpreter does it: cutting bits, where a GPU (and PyTorch) rounds."""
    return value.float().view(torch.int32).bitwise_and(-65536).view(torch.float32)


def newest_rows(off_U1: Tensor, T: int, newest: int) -> Tensor:
    """Which rows are averaged, bool [T]."""
    averaged_T = torch.zeros(T, dtype=torch.bool, device=off_U1.device)
    for start, end in zip(off_U1[:-1].tolist(), off_U1[1:].tolist(), strict=True):
        averaged_T[max(start, end - newest) : end] = True
    return averaged_T


@pytest.mark.parametrize("newest", [1, 20, 100])
@pytest.mark.parametrize("D", [1, 40, 128, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_at_most_twice_that_of_naive(newest: int, D: int, dtype: torch.dtype, device: torch.device) -> None:
    case = inputs(awkward(newest), D, dtype, device)
    for used in [(True, True), (False, True)]:
        exact = run(naive.newest_mean, widened(case, torch.float64), newest, used)
        plain = run(naive.newest_mean, case, newest, used)
        if dtype == torch.bfloat16 and device.type == "cpu":
            plain = [truncated(value) for value in run(naive.newest_mean, widened(case, torch.float32), newest, used)]
        ours, again = run(fused, case, newest, used), run(fused, case, newest, used)
        for name, value, same, same_dtype, reference in zip(NAMES, ours, again, plain, exact, strict=True):
            assert (value.shape, value.dtype) == (reference.shape, dtype), name
            # Four roundings of float32 are granted where naive happens to be exact, as in a mean of one event.
            allowed = 2 * relative_error(same_dtype, reference) + 4 * torch.finfo(torch.float32).eps
            assert relative_error(value, reference) <= allowed, name
            assert torch.equal(value, same), f"equal inputs gave other bits: {name}"
        assert torch.equal(ours[0], case[0])


@pytest.mark.parametrize("newest", [1, 20, 100])
def test_gradients_of_other_rows_stay_to_the_bit(newest: int, device: torch.device) -> None:
    """Events older than the newest, and those of no history: what the others gave, or 0."""
    case = inputs(awkward(newest), 24, torch.bfloat16, device)
    x_TD, off_U1, d_out_TD, _ = case
    others_T = ~newest_rows(off_U1, len(x_TD), newest)
    assert others_T.sum() > SURPLUS
    assert torch.equal(run(fused, case, newest)[2][others_T], d_out_TD[others_T])
    assert torch.equal(run(fused, case, newest, (True, False))[2], d_out_TD)
    alone = run(fused, case, newest, (False, True))[2]
    assert not alone[others_T].any()
    assert alone[~others_T].any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_rows_are_not_read(dtype: torch.dtype, device: torch.device) -> None:
    x_TD, off_U1, _, _ = case = inputs(awkward(20), 40, dtype, device)
    holes_TD = x_TD.masked_fill(~newest_rows(off_U1, len(x_TD), 20)[:, None], torch.nan)
    assert torch.equal(fused(holes_TD, off_U1, 20)[1], fused(case[0], off_U1, 20)[1])


@pytest.mark.parametrize("function", [naive.newest_mean, newest_mean, fused])
def test_by_hand(function, device: torch.device) -> None:
    x_TD = torch.arange(12.0, device=device).view(6, 2)
    out_TD, mean_UD = function(x_TD, torch.tensor([0, 0, 4, 5, 6], device=device), 3)
    assert torch.equal(out_TD, x_TD)
    assert mean_UD.tolist() == [[0.0, 0.0], [4.0, 5.0], [8.0, 9.0], [10.0, 11.0]]


@pytest.mark.parametrize("function", [naive.newest_mean, fused])
@pytest.mark.parametrize(("lengths", "surplus"), [([], 0), ([], 5), ([0, 0], 0), ([0, 0], 5)], ids=str)
def test_nothing(function, lengths: list[int], surplus: int, device: torch.device) -> None:
    x_TD = torch.randn(surplus, 4, device=device, requires_grad=True)
    out_TD, mean_UD = function(x_TD, offsets(lengths, device), 3)
    assert mean_UD.shape == (len(lengths), 4)
    assert not mean_UD.any()
    # Whether one output is used or both, there is a gradient: a process without events takes part in all exchanges.
    for loss, expected in [(mean_UD.sum(), 0.0), (out_TD.sum() + mean_UD.sum(), 1.0)]:
        (gradient,) = torch.autograd.grad(loss, x_TD, retain_graph=True)
        assert torch.equal(gradient, torch.full_like(x_TD, expected))


def test_gradients_that_come_in_are_not_changed(device: torch.device) -> None:
    x_TD, off_U1, d_out_TD, d_mean_UD = case = inputs(awkward(20), 8, torch.float32, device)
    before = d_out_TD.clone(), d_mean_UD.clone()
    d_x_TD = run(fused, case, 20)[2]
    assert all(map(torch.equal, (d_out_TD, d_mean_UD), before))
    assert d_x_TD.data_ptr() != d_out_TD.data_ptr()
    # A sum hands one gradient to both of its terms: the other's must not hold the mean's share.
    leaf, other_TD = x_TD.clone().requires_grad_(), torch.zeros_like(x_TD).requires_grad_()
    out_TD, mean_UD = fused(leaf, off_U1, 20)
    outputs = [out_TD + other_TD, mean_UD]
    gradients = torch.autograd.grad(outputs, (leaf, other_TD), (d_out_TD, d_mean_UD))
    assert all(map(torch.equal, gradients, (d_x_TD, d_out_TD)))


def test_in_place(device: torch.device) -> None:
    """The same gradient, in the memory of the one that came in; of one that is not contiguous in its own."""
    x_TD, off_U1, d_out_TD, d_mean_UD = case = inputs(awkward(20), 8, torch.float32, device)
    expected, leaf = run(fused, case, 20)[2], x_TD.clone().requires_grad_()
    outputs = fused(leaf, off_U1, 20, in_place=True)
    turned_TD = d_out_TD.t().contiguous().t()
    given = turned_TD.clone(memory_format=torch.preserve_format)
    (found,) = torch.autograd.grad(outputs, leaf, (given, d_mean_UD), retain_graph=True)
    assert torch.equal(found, expected)
    assert torch.equal(given, turned_TD)
    (found,) = torch.autograd.grad(outputs, leaf, (d_out_TD, d_mean_UD))
    assert torch.equal(found, expected)
    assert found.data_ptr() == d_out_TD.data_ptr()


def test_any_strides(device: torch.device) -> None:
    """Events and gradients that are transposed or one number in all places."""
    x_TD, off_U1, d_out_TD, d_mean_UD = case = inputs(awkward(20), 8, torch.float32, device)
    turned = tuple(t.t().contiguous().t() if t.is_floating_point() else t.repeat_interleave(2)[::2] for t in case)
    assert not any(tensor.is_contiguous() for tensor in turned)
    assert all(map(torch.equal, run(fused, turned, 20), run(fused, case, 20)))
    ones = torch.ones((), device=device)
    wide = x_TD, off_U1, ones.expand_as(d_out_TD), ones.expand_as(d_mean_UD)
    plain = x_TD, off_U1, torch.ones_like(d_out_TD), torch.ones_like(d_mean_UD)
    assert all(map(torch.equal, run(fused, wide, 20), run(fused, plain, 20)))


def test_histories_in_another_order(device: torch.device) -> None:
    lengths = awkward(20)
    case = inputs(lengths, 40, torch.float32, device)
    x_TD, off_U1, d_out_TD, d_mean_UD = case
    order_U = torch.randperm(len(lengths)).tolist()
    row_T = torch.cat([torch.arange(*off_U1[u : u + 2].tolist()) for u in order_U])
    row_T = torch.cat([row_T, torch.arange(len(row_T), len(x_TD))]).to(device)
    moved = x_TD[row_T], offsets([lengths[u] for u in order_U], device), d_out_TD[row_T], d_mean_UD[order_U]
    _, mean_UD, d_x_TD = run(fused, case, 20)
    _, moved_UD, d_moved_TD = run(fused, moved, 20)
    assert torch.equal(moved_UD, mean_UD[order_U])
    assert torch.equal(d_moved_TD, d_x_TD[row_T])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("newest", [1, 20, 100])
def test_bits_on_the_cpu_are_those_of_the_former_form(newest: int, dtype: torch.dtype) -> None:
    case = inputs(awkward(newest), 40, dtype, torch.device("cpu"))
    for function in (newest_mean, naive.newest_mean):
        ours = run(function, case, newest)
        expected = run(lambda x, off, n: (x, former(x, off, n)), case, newest)
        assert all(map(torch.equal, ours, expected))
        assert function(case[0], case[1], newest)[0] is case[0]
    assert newest_mean(case[0][:0], torch.tensor([0, 0]), newest)[1].tolist() == [[0.0] * 40]


def test_gradcheck() -> None:
    x_TD = torch.randn(28, 3, dtype=torch.float64, requires_grad=True)
    off_U1 = offsets([20, 0, 5], torch.device("cpu"))
    assert torch.autograd.gradcheck(lambda x: newest_mean(x, off_U1, 7), (x_TD,))


def test_public_op_takes_the_kernels_and_a_compiler_does_not(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    calls: list[int] = []
    right = triton.forward
    monkeypatch.setattr("laser.ops.newest_mean.use_triton", lambda _: True)
    monkeypatch.setattr(triton, "forward", lambda *args: (calls.append(1), right(*args))[1])
    case = inputs(awkward(20), 8, torch.float32, device)
    expected = run(fused, case, 20)
    assert all(map(torch.equal, run(newest_mean, case, 20), expected))
    assert len(calls) == 2
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert all(map(torch.equal, run(newest_mean, case, 20), run(naive.newest_mean, case, 20)))
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_under_autocast_on_cuda_the_mean_is_float32(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, device: torch.device
) -> None:
    """The mean is then not rounded to the events' dtype, and their gradient is theirs."""
    monkeypatch.setattr("laser.ops.newest_mean.use_triton", lambda _: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: device_type == "cuda")
    case = inputs(awkward(20), 40, dtype, device)
    _, mean_UD, d_x_TD = run(newest_mean, case, 20)
    exact = run(naive.newest_mean, widened(case, torch.float64), 20)
    assert (mean_UD.dtype, d_x_TD.dtype) == (torch.float32, dtype)
    assert relative_error(mean_UD, exact[1]) <= 4 * torch.finfo(torch.float32).eps
    assert relative_error(d_x_TD, exact[2]) <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_dtype_under_autocast_is_that_of_naive(dtype: torch.dtype, device: torch.device) -> None:
    x_TD, off_U1, *_ = inputs([3, 0, 30], 8, dtype, device)
    with torch.autocast(device.type, torch.bfloat16):
        for rows in (33, 0):
            here_U1 = off_U1.clamp(max=rows)
            pairs = zip(newest_mean(x_TD[:rows], here_U1, 20), naive.newest_mean(x_TD[:rows], here_U1, 20))
            assert all(ours.dtype == expected.dtype for ours, expected in pairs)


def test_differentiable_once(device: torch.device) -> None:
    x_TD, off_U1, *_ = inputs([3, 0, 30], 8, torch.float32, device)
    leaf = x_TD.requires_grad_()
    out_TD, mean_UD = fused(leaf, off_U1, 20)
    loss = out_TD.square().sum() + mean_UD.square().sum()
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_without_gradients(device: torch.device) -> None:
    x_TD, off_U1, *_ = inputs([3, 0, 30], 8, torch.float32, device)
    expected = fused(x_TD.clone().requires_grad_(), off_U1, 20)
    with torch.no_grad():
        out_TD, mean_UD = fused(x_TD.requires_grad_(), off_U1, 20)
    assert all(map(torch.equal, (out_TD, mean_UD), expected))
    assert not mean_UD.requires_grad
    assert out_TD.data_ptr() == x_TD.data_ptr()


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        newest_mean(torch.zeros(2, 3), torch.tensor([0, 2]), 0)
    with pytest.raises(ValueError, match=r"torch\.int64 \[U \+ 1\]"):
        newest_mean(torch.zeros(2, 3), torch.tensor([0, 2], dtype=torch.int32), 1)
    with pytest.raises(ValueError, match=r"\[T, D\]"):
        newest_mean(torch.zeros(2), torch.tensor([0, 2]), 1)
