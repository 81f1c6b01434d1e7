"""Target attention: every implementation against float64 naive, output and each gradient by name."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import laser.ops.target_attention as package
from laser.ops.target_attention import cpu, joined_attention, naive, segment_softmax_attention, tensor_cores, triton

NAMES = ["pooled", "d_query", "d_seg"]
IMPLEMENTATIONS = {"cpu": cpu, "triton": triton}
COUNTS = [0, 1, 15, 16, 33, 150, 0]


def inputs(
    counts: list[int], D: int, H: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    seg_off_B1 = torch.tensor([0, *counts]).cumsum(0)
    query_BHD = torch.randn(len(counts), H, D).div(D**0.5).to(device, dtype)
    return query_BHD, torch.randn(int(seg_off_B1[-1]), D).to(device, dtype), seg_off_B1.to(device)


def by_naive(query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor, upstream: Tensor) -> list[Tensor]:
    leaves = [query_BHD.detach().requires_grad_(), seg_GD.detach().requires_grad_()]
    pooled = naive.segment_softmax_attention(*leaves, seg_off_B1)
    return [pooled.detach(), *torch.autograd.grad(pooled, leaves, upstream.to(pooled.dtype))]


def by(implementation, query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor, upstream: Tensor) -> list[Tensor]:
    pooled, lse = implementation.forward(query_BHD, seg_GD, seg_off_B1)
    d_query, d_seg = implementation.backward(upstream.to(pooled.dtype), query_BHD, seg_GD, seg_off_B1, pooled, lse)
    return [pooled.to(seg_GD.dtype), d_query, d_seg]


def error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp(min=1e-30))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("D", "H", "dtype"),
    [
        (16, 2, torch.float32),
        (1, 1, torch.float32),
        (40, 3, torch.float32),
        (512, 4, torch.float32),
        (24, 2, torch.float16),
        (24, 2, torch.bfloat16),
        (1, 1, torch.bfloat16),
        (40, 3, torch.bfloat16),
        (128, 2, torch.bfloat16),
        (100, 8, torch.bfloat16),
        (24, 9, torch.bfloat16),
        (200, 5, torch.bfloat16),
    ],
)
def test_output_and_gradients(implementation: str, D: int, H: int, dtype: torch.dtype, device: torch.device) -> None:
    query, seg, seg_off = inputs(COUNTS, D, H, dtype, device)
    upstream = torch.randn(len(COUNTS), H, D).to(device, dtype)
    exact = by_naive(query.double(), seg.double(), seg_off, upstream.double())
    plain = by_naive(query, seg, seg_off, upstream)
    ours = by(IMPLEMENTATIONS[implementation], query, seg, seg_off, upstream)
    # Triton's interpreter cuts to bfloat16 where a GPU rounds: one more rounding of that dtype.
    cut = 2**-9 if dtype == torch.bfloat16 and implementation == "triton" and device.type == "cpu" else 0.0
    for name, value, same_dtype, reference in zip(NAMES, ours, plain, exact, strict=True):
        allowed = 2 * error(same_dtype, reference) + 4 * torch.finfo(torch.float32).eps + cut
        assert value.dtype == dtype, name
        assert error(value, reference) <= allowed, f"{name}: {error(value, reference):.2e} > {allowed:.2e}"


@pytest.mark.parametrize("function", ["naive", "op"])
def test_by_hand(function: str) -> None:
    op = {"naive": naive.segment_softmax_attention, "op": segment_softmax_attention}[function]
    query = torch.tensor([[[0.0, 1.0]], [[5.0, 5.0]]]) * torch.tensor(3.0).log()
    seg = torch.tensor([[4.0, 0.0], [8.0, 1.0]])
    pooled = op(query, seg, torch.tensor([0, 2, 2]))
    torch.testing.assert_close(pooled, torch.tensor([[[4 / 4 + 8 * 3 / 4, 3 / 4]], [[0.0, 0.0]]]))


def test_only_narrow_heads_in_bfloat16_go_to_tensor_cores() -> None:
    served = {(H, D) for H in (1, 2, 8, 9) for D in (1, 128, 512) if tensor_cores.serves(torch.bfloat16, H, D)}
    assert served == {(1, 1), (1, 128), (1, 512), (2, 1), (2, 128), (2, 512), (8, 1), (8, 128)}
    assert not any(tensor_cores.serves(dtype, 2, 128) for dtype in (torch.float16, torch.float32, torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_large_scores_do_not_overflow(implementation: str, dtype: torch.dtype, device: torch.device) -> None:
    query, seg, seg_off = inputs([40, 3], 8, 1, torch.float32, device)
    seg = seg.to(dtype)
    values = by(IMPLEMENTATIONS[implementation], query * 1e4, seg, seg_off, torch.ones(2, 1, 8, device=device))
    assert all(value.isfinite().all() for value in values)
    largest = (seg[:40].float() @ query[0, 0]).argmax()
    torch.testing.assert_close(values[0][0, 0], seg[largest])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scores_far_below_zero(implementation: str, dtype: torch.dtype, device: torch.device) -> None:
    """What lies past the end would have a weight without bounds there."""
    query, seg, seg_off = inputs([40, 3], 8, 1, dtype, device)
    values = by(IMPLEMENTATIONS[implementation], -100 * query.abs(), seg.abs() + 1, seg_off, torch.ones_like(query))
    assert all(value.isfinite().all() for value in values)


@pytest.mark.parametrize("counts", [[], [0, 0, 0]])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing(implementation: str, counts: list[int], device: torch.device) -> None:
    query, seg, seg_off = inputs(counts, 4, 2, torch.float32, device)
    pooled, d_query, d_seg = by(IMPLEMENTATIONS[implementation], query, seg, seg_off, torch.ones_like(query))
    assert pooled.shape == (len(counts), 2, 4)
    assert not pooled.any()
    assert not d_query.any()
    assert d_seg.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_batch_split_in_two_and_equal_bits(implementation: str, dtype: torch.dtype, device: torch.device) -> None:
    query, seg, seg_off = inputs([20, 0, 7, 33], 8, 2, dtype, device)
    ours = IMPLEMENTATIONS[implementation]
    upstream = torch.randn(4, 2, 8).to(device)
    whole = by(ours, query, seg, seg_off, upstream)
    first = by(ours, query[:2].contiguous(), seg[:20].contiguous(), seg_off[:3], upstream[:2].contiguous())
    second = by(ours, query[2:].contiguous(), seg[20:].contiguous(), seg_off[2:] - 20, upstream[2:].contiguous())
    for name, value, one, other in zip(NAMES, whole, first, second, strict=True):
        torch.testing.assert_close(torch.cat([one, other]), value, msg=lambda text, name=name: f"{name}: {text}")
    for value, again in zip(whole, by(ours, query, seg, seg_off, upstream), strict=True):
        assert torch.equal(value, again)


def test_gradcheck_and_autocast() -> None:
    query, seg, seg_off = inputs([0, 3, 20], 3, 2, torch.float64, torch.device("cpu"))
    leaves = (query.requires_grad_(), seg.requires_grad_())
    assert torch.autograd.gradcheck(lambda q, s: segment_softmax_attention(q, s, seg_off), leaves)
    narrow = [tensor.detach().float().requires_grad_() for tensor in leaves]
    plain = torch.autograd.grad(segment_softmax_attention(*narrow, seg_off).square().sum(), narrow)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = segment_softmax_attention(*narrow, seg_off)
        for one, other in zip(plain, torch.autograd.grad(pooled.square().sum(), narrow), strict=True):
            assert torch.equal(one, other)


def test_mistakes() -> None:
    query, seg, seg_off = inputs([2, 1], 4, 1, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="absorb the key projection"):
        segment_softmax_attention(query, seg[:, :3], seg_off)
    with pytest.raises(ValueError, match=r"torch\.int64 \[3\]"):
        segment_softmax_attention(query, seg, seg_off[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_segments_of_no_sample_have_no_part_in_it(
    implementation: str, dtype: torch.dtype, device: torch.device
) -> None:
    """They lie behind the last sample's. Their gradient is 0, not what memory happened to hold."""
    query, seg, seg_off = inputs([3, 0, 20], 16, 2, dtype, device)
    upstream = torch.randn_like(query)
    alone = by(IMPLEMENTATIONS[implementation], query, seg, seg_off, upstream)
    pooled, d_query, d_seg = by(
        IMPLEMENTATIONS[implementation], query, torch.cat([seg, seg.new_full((5, 16), torch.nan)]), seg_off, upstream
    )
    assert d_seg[len(seg) :].tolist() == [[0.0] * 16] * 5
    assert all(map(torch.equal, (pooled, d_query, d_seg[: len(seg)]), alone))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("in_place", [False, True])
def test_joined_gradients_are_the_sum(
    dtype: torch.dtype, spare: int, in_place: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two layers and another use, in the kernels of tensor cores and the others."""
    query, seg, seg_off = inputs(COUNTS, 40, 2, dtype, device)
    seg = torch.cat([seg, seg.new_zeros(spare, 40)])
    upstream, of_seg = torch.randn(2, *query.shape).to(device, dtype), torch.randn_like(seg)

    def gradients(function, *tensors: Tensor) -> tuple[Tensor, ...]:
        query, seg = (tensor.detach().requires_grad_() for tensor in tensors)
        first, then = function(query, seg, seg_off)
        second, then = function(query.flip(0) * 0.5, then, seg_off)
        outputs = [first, second, then * 1 if in_place else then]  # a product's gradient is its own
        weights = [weight.to(seg.dtype) for weight in (*upstream, of_seg)]
        return torch.autograd.grad(outputs, [query, seg], weights)

    def plain(query: Tensor, seg: Tensor, seg_off: Tensor) -> tuple[Tensor, Tensor]:
        return naive.segment_softmax_attention(query, seg[: int(seg_off[-1])], seg_off), seg

    exact = gradients(plain, query.double(), seg.double())
    same_dtype = gradients(plain, query, seg)
    monkeypatch.setattr(package, "use_triton", lambda tensor: True)
    before = of_seg.clone()
    found = gradients(partial(joined_attention, in_place=in_place), query, seg)
    assert torch.equal(of_seg, before), "a gradient that was given from outside is changed"
    cut = 2**-8 if dtype == torch.bfloat16 and device.type == "cpu" else 0.0  # the interpreter cuts
    for name, value, rounded, wanted in zip(NAMES[1:], found, same_dtype, exact, strict=True):
        assert error(value, wanted) <= 2 * error(rounded, wanted) + cut, name
    assert torch.equal(found[1][len(seg) - spare :], of_seg[len(seg) - spare :])


def test_joined_without_another_use_of_one_output(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "use_triton", lambda tensor: True)
    query, seg, seg_off = inputs(COUNTS, 24, 2, torch.float16, device)
    for place in (0, 1):
        leaf = seg.detach().requires_grad_()
        output = joined_attention(query, leaf, seg_off)[place]
        (found,) = torch.autograd.grad(output.float().sum(), leaf)
        assert torch.equal(found, torch.ones_like(found)) == (place == 1)
