"""A gated recurrence: Triton against naive in float64, every gradient by name; naive by hand (and in DIEN's tests)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import laser.ops.gated_recurrence as package
from laser.ops.gated_recurrence import gated_recurrence, naive, triton

NAMES = ["states", "d_products", "d_scale", "d_gates_weight", "d_candidate_weight"]
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


def inputs(B: int, L: int, D: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Products, scale and weights; the first third of events, and all of the last sample, is padding."""
    scale_BL = torch.rand(B, L)
    scale_BL[:, : L // 3], scale_BL[B - 1 :] = 0, 0
    tensors = torch.randn(B, L, 3 * D), scale_BL, torch.randn(2 * D, D) / D**0.5, torch.randn(D, D) / D**0.5
    return [tensor.to(device, dtype) for tensor in tensors]


def by_naive(tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    states = naive.gated_recurrence(*leaves)
    return [states.detach(), *torch.autograd.grad(states, leaves, upstream.to(states.dtype))]


def by_triton(tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    states = triton.forward(*tensors)
    return [states.to(tensors[0].dtype), *triton.backward(upstream.to(states.dtype), *tensors, states)]


def error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp(min=1e-30))


@pytest.mark.parametrize(
    ("B", "L", "D", "dtype"),
    [
        (17, 7, 5, FLOAT32),
        (3, 70, 1, FLOAT32),
        (1, 1, 16, FLOAT32),
        (33, 4, 40, FLOAT32),
        (5, 3, 64, FLOAT32),
        (17, 5, 24, BFLOAT16),
        (2, 3, 128, BFLOAT16),
        (4, 6, 24, FLOAT16),
    ],
)
def test_output_and_gradients(B: int, L: int, D: int, dtype: torch.dtype, device: torch.device) -> None:
    tensors, upstream = inputs(B, L, D, dtype, device), torch.randn(B, L, D).to(device, dtype)
    exact = by_naive([tensor.double() for tensor in tensors], upstream.double())
    plain, ours = by_naive(tensors, upstream), by_triton(tensors, upstream)
    # Triton's interpreter cuts to bfloat16 where a GPU rounds: one more rounding of that dtype.
    cut = 2**-9 if dtype == BFLOAT16 and device.type == "cpu" else 0.0
    for name, value, same_dtype, reference in zip(NAMES, ours, plain, exact, strict=True):
        allowed = 2 * error(same_dtype, reference) + 4 * torch.finfo(FLOAT32).eps + cut
        assert (value.dtype, value.shape) == (dtype, reference.shape), name
        assert error(value, reference) <= allowed, f"{name}: {error(value, reference):.2e} > {allowed:.2e}"


def test_padding_keeps_the_state_and_has_no_gradient(device: torch.device) -> None:
    products, scale, *weights = inputs(18, 9, 8, FLOAT32, device)
    scale[3, 5:7] = 0
    products[3, 5:7] = 1e3
    states, d_products, *_ = by_triton([products, scale, *weights], torch.randn(18, 9, 8).to(device))
    assert not states[:, :3].any()
    assert not states[17].any()
    assert torch.equal(states[3, 6], states[3, 4])
    assert not d_products[:, :3].any()
    assert not d_products[3, 5:7].any()
    assert d_products[3, 4].any()
    alone = by_triton(
        [products[:, 3:].contiguous(), scale[:, 3:].contiguous(), *weights], torch.zeros(18, 6, 8).to(device)
    )[0]
    assert torch.equal(alone, states[:, 3:])


def test_equal_bits_and_a_batch_split_in_two(device: torch.device) -> None:
    products, scale, *weights = inputs(20, 6, 8, FLOAT32, device)
    upstream = torch.randn(20, 6, 8).to(device)
    whole = by_triton([products, scale, *weights], upstream)
    assert all(map(torch.equal, whole, by_triton([products, scale, *weights], upstream)))
    parts = [
        by_triton([products[some].contiguous(), scale[some].contiguous(), *weights], upstream[some])
        for some in (slice(0, 11), slice(11, 20))
    ]
    for place in range(3):
        torch.testing.assert_close(torch.cat([part[place] for part in parts]), whole[place])
    for place in (3, 4):
        torch.testing.assert_close(parts[0][place] + parts[1][place], whole[place])


def test_by_hand() -> None:
    """Width 1: u = 1/2 of a scale of 1/2, r = sigmoid(ln 3 h), c = tanh(p + r h)."""
    products = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
    weight = torch.tensor([[0.0], [math.log(3.0)]])
    first, second = gated_recurrence(products, torch.full((1, 2), 0.5), weight, torch.ones(1, 1)).flatten().tolist()
    assert first == pytest.approx(math.tanh(1.0) / 4)
    read = first / (1 + 3.0**-first)
    assert second == pytest.approx(0.75 * first + 0.25 * math.tanh(read))


def test_gradcheck_and_nothing() -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(2, 3, 2, torch.float64, torch.device("cpu"))]
    assert torch.autograd.gradcheck(gated_recurrence, leaves)
    for shape in ((0, 3), (2, 0)):
        leaves = [tensor.requires_grad_() for tensor in inputs(2, 3, 2, FLOAT32, torch.device("cpu"))]
        some = [tensor[: shape[0], : shape[1]] for tensor in leaves[:2]]
        states = gated_recurrence(*some, *leaves[2:])
        assert states.shape == (*shape, 2)
        assert not any(gradient.any() for gradient in torch.autograd.grad(states.sum(), leaves))


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU")
@pytest.mark.parametrize(("D", "dtype", "served"), [(128, BFLOAT16, True), (64, FLOAT32, True), (65, FLOAT32, False)])
def test_what_goes_to_triton(monkeypatch: pytest.MonkeyPatch, D: int, dtype: torch.dtype, served: bool) -> None:
    """As on a GPU, where wider weights leave a program no room; strides do not matter."""
    monkeypatch.setattr(package, "use_triton", lambda tensor: tensor.dtype != torch.float64)
    launched = []
    forward = triton.forward
    monkeypatch.setattr(triton, "forward", lambda *args: launched.append(1) or forward(*args))
    products, *others = inputs(2, 3, D, dtype, torch.device("cpu"))
    strided = products.transpose(0, 1).contiguous().transpose(0, 1)
    states = gated_recurrence(strided, *others)
    assert bool(launched) == served
    assert states.dtype == dtype
    torch.testing.assert_close(states, naive.gated_recurrence(products, *others), rtol=2e-2, atol=2e-2)


def test_autocast_casts_the_weights_alone() -> None:
    products, scale, *weights = inputs(2, 5, 8, FLOAT32, torch.device("cpu"))
    weights = [weight.requires_grad_() for weight in weights]
    with torch.autocast("cpu", BFLOAT16):
        states = gated_recurrence(products, scale, *weights)
    assert states.dtype == FLOAT32
    rounded = [weight.to(BFLOAT16) for weight in weights]
    assert torch.equal(states, naive.gated_recurrence(products, scale, *rounded))
    assert not torch.equal(states, naive.gated_recurrence(products, scale, *weights))
    assert all(gradient.dtype == FLOAT32 for gradient in torch.autograd.grad(states.sum(), weights))


def test_mistakes() -> None:
    products, scale, gates, candidate = inputs(2, 3, 4, FLOAT32, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"pass \[B, L, 3D\]"):
        gated_recurrence(products[..., :8], scale, gates, candidate)
    with pytest.raises(ValueError, match="weights of one dtype"):
        gated_recurrence(products, scale, gates, candidate.double())
