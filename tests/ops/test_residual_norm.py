"""Layer norm of a sum: Triton against naive in float64, every gradient by name; off CUDA the bits of PyTorch's norm."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

import laser.ops.residual_norm as package
from laser.ops.residual_norm import FusedResidualNorm, naive, residual_norm, triton

NAMES = ["normed", "d_a", "d_b", "d_weight", "d_bias"]
EPS = 1e-5
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


def inputs(
    shape: tuple[int, ...], device: torch.device, a_dtype: torch.dtype = FLOAT32, b_dtype: torch.dtype = FLOAT32
) -> list[Tensor]:
    """a, b, weight, bias and the gradient of the norm."""
    weight, bias = torch.rand(shape[-1]) + 0.5, torch.randn(shape[-1])
    a, b, upstream = (torch.randn(shape) for _ in range(3))
    dtypes = (a_dtype, b_dtype, FLOAT32, FLOAT32, torch.promote_types(a_dtype, b_dtype))
    return [
        tensor.to(device, dtype) for tensor, dtype in zip((2 * a + 1, b, weight, bias, upstream), dtypes, strict=True)
    ]


def run(op, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, upstream: Tensor) -> list[Tensor]:
    """The norm, and the gradients of a, b, weight and bias."""
    leaves = [tensor.detach().requires_grad_() for tensor in (a, b, weight, bias)]
    normed = op(*leaves, EPS)
    return [normed.detach(), *torch.autograd.grad(normed, leaves, upstream.to(normed.dtype))]


def error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def check(tensors: list[Tensor]) -> list[Tensor]:
    """Triton obeys the acceptance rule for these tensors; its answers."""
    exact = run(naive.residual_norm, *(tensor.double() for tensor in tensors))
    plain = run(naive.residual_norm, *tensors)
    ours = run(FusedResidualNorm.apply, *tensors)
    on_cpu = tensors[0].device.type == "cpu"
    for name, value, same_dtype, reference in zip(NAMES, ours, plain, exact, strict=True):
        # Triton's interpreter cuts to bfloat16 where a GPU rounds: one more rounding of that dtype.
        cut = 2**-9 if value.dtype == BFLOAT16 and on_cpu else 0.0
        allowed = 2 * error(same_dtype, reference) + 4 * torch.finfo(FLOAT32).eps + cut
        assert (value.dtype, value.shape) == (same_dtype.dtype, same_dtype.shape), name
        assert error(value, reference) <= allowed, f"{name}: {error(value, reference):.2e} > {allowed:.2e}"
    return ours


@pytest.mark.parametrize(("N", "D"), [(5, 3), (300, 3), *itertools.product([1, 5, 300], [40, 128, 200, 512])])
def test_output_and_gradients(N: int, D: int, device: torch.device) -> None:
    check(inputs((N, D), device))


@pytest.mark.parametrize("shape", [(1, 1000), (3, 1024), (2, 3, 5, 24), (16,)])
def test_other_shapes(shape: tuple[int, ...], device: torch.device) -> None:
    check(inputs(shape, device))


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 3)])
def test_few_values(shape: tuple[int, ...], device: torch.device) -> None:
    """Their gradients cancel to 0 or nearly so, which no error is relative to."""
    tensors = inputs(shape, device)
    exact = run(naive.residual_norm, *(tensor.double() for tensor in tensors))
    for name, value, reference in zip(NAMES, run(FusedResidualNorm.apply, *tensors), exact, strict=True):
        torch.testing.assert_close(
            value.double(), reference, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("dtypes", [(BFLOAT16, BFLOAT16), (FLOAT16, FLOAT16), (FLOAT32, BFLOAT16), (FLOAT16, FLOAT32)])
@pytest.mark.parametrize("D", [40, 128])
def test_half_precision(dtypes: tuple[torch.dtype, torch.dtype], D: int, device: torch.device) -> None:
    """Also of one of both alone: each gradient has its input's dtype."""
    check(inputs((37, D), device, *dtypes))


@pytest.mark.parametrize("half", [(2,), (3,), (2, 3)])
def test_weights_in_half_precision(half: tuple[int, ...], device: torch.device) -> None:
    """One of both or both; autograd would hide a gradient of the other's dtype, but not its rounding."""
    tensors = inputs((37, 40), device)
    check([tensor.half() if at in half else tensor for at, tensor in enumerate(tensors)])


def test_sum_is_not_rounded(device: torch.device) -> None:
    """1 + 2^-10 is 1 in bfloat16; the norm of the sum sees the difference."""
    a = torch.ones(1, 8, dtype=BFLOAT16, device=device)
    b = torch.tensor([[0.0, 2**-10] * 4], dtype=BFLOAT16, device=device)
    normed = FusedResidualNorm.apply(a, b, torch.ones(8, device=device), torch.zeros(8, device=device), 1e-12)
    torch.testing.assert_close(normed.float(), torch.tensor([[-1.0, 1.0] * 4], device=device), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("programs", [1, 2, 3, 200])
def test_programs_take_turns(programs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs with many tiles each, and more parts than a tile of the last kernel has."""
    monkeypatch.setattr(triton, "MOST_PROGRAMS", programs)
    monkeypatch.setattr(triton, "TILE_ELEMENTS", 64)
    check(inputs((301, 24), device))


def test_strides(device: torch.device) -> None:
    """Rows are read where they lie: transposed, cut out of wider ones, or one row for all."""
    a, b, weight, bias, _ = inputs((6, 5, 24), device)
    upstream = torch.randn(6, 1, 24, device=device).expand(6, 5, 24)
    wide = torch.randn(6, 5, 30, device=device)
    expected = run(FusedResidualNorm.apply, a, b, weight, bias, upstream.contiguous())
    for strided in (
        b.transpose(0, 1).contiguous().transpose(0, 1),
        b.transpose(1, 2).contiguous().transpose(1, 2),
        torch.cat([wide, b], 2)[..., 30:],
    ):
        assert not strided.is_contiguous()
        for name, *values in zip(
            NAMES, run(FusedResidualNorm.apply, a, strided, weight, bias, upstream), expected, strict=True
        ):
            torch.testing.assert_close(*values, msg=lambda text, name=name: f"{name}: {text}")
    flipped = [tensor.transpose(0, 1) for tensor in (a, b, upstream)]
    check([*flipped[:2], weight, bias, flipped[2]])
    check([a[:, 2], b[:, 3], weight, bias, upstream[:, 0]])
    check([a, b, torch.stack([weight, bias], 1)[:, 0], torch.stack([weight, bias], 1)[:, 1], upstream])
    check([a, b, weight, bias, torch.ones((), device=device).expand(6, 5, 24)])


def test_what_is_read_where_it_lies(device: torch.device) -> None:
    """Neither tokens of a transposed product nor an expanded gradient are copied, whatever lies beside them."""
    tokens, rows = torch.randn(5, 6, 8, device=device).transpose(0, 1), torch.randn(6, 5, 8, device=device)
    expanded = torch.randn(6, 1, 8, device=device).expand(6, 5, 8)
    for tensors in ((tokens, rows), (expanded, tokens, rows), (expanded, rows, rows), (rows, rows[..., :8])):
        found = triton.as_rows(*tensors)
        assert [x.data_ptr() for x in found] == [x.data_ptr() for x in tensors]
        assert all(torch.equal(x.reshape(30, 8), y.reshape(30, 8)) for x, y in zip(found, tensors, strict=True))
    assert [x.shape for x in triton.as_rows(rows, rows)] == [(30, 1, 8)] * 2


def test_rows_behind_the_end_have_no_part_in_it(device: torch.device) -> None:
    a, b, weight, bias, upstream = inputs((13, 40), device)
    expected = run(FusedResidualNorm.apply, a, b, weight, bias, upstream)
    padded = [torch.cat([x, x.new_full((40, 40), torch.nan)])[:13] for x in (a, b, upstream)]
    assert all(map(torch.equal, run(FusedResidualNorm.apply, *padded[:2], weight, bias, padded[2]), expected))


def test_large_offset(device: torch.device) -> None:
    """The variance of values of mean 1000 and spread 1 is not what is left of a difference of squares."""
    a, *rest = inputs((50, 200), device)
    check([a + 1000, *rest])


def test_equal_values_have_no_spread(device: torch.device) -> None:
    a, b, weight, bias, upstream = inputs((4, 40), device)
    normed, *gradients = run(
        FusedResidualNorm.apply, torch.full_like(a, 2.0), torch.ones_like(b), weight, bias, upstream
    )
    assert torch.equal(normed, bias.expand_as(normed))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("shape", [(0, 40), (0, 3, 8), (3, 0, 8)])
def test_nothing(shape: tuple[int, ...], device: torch.device) -> None:
    normed, d_a, d_b, *of_weights = run(FusedResidualNorm.apply, *inputs(shape, device))
    assert normed.shape == d_a.shape == d_b.shape == shape
    assert [gradient.tolist() for gradient in of_weights] == [[0.0] * shape[-1]] * 2


def test_batch_split_in_two_and_equal_bits(device: torch.device) -> None:
    a, b, weight, bias, upstream = inputs((300, 40), device)
    whole = run(FusedResidualNorm.apply, a, b, weight, bias, upstream)
    assert all(map(torch.equal, whole, run(FusedResidualNorm.apply, a, b, weight, bias, upstream)))
    first, second = (
        run(FusedResidualNorm.apply, a[part], b[part], weight, bias, upstream[part])
        for part in (slice(0, 144), slice(144, None))
    )
    for name, value, one, other in zip(NAMES[:3], whole, first, second, strict=False):
        assert torch.equal(torch.cat([one, other]), value), name
    for name, value, one, other in zip(NAMES[3:], whole[3:], first[3:], second[3:], strict=True):
        torch.testing.assert_close(one + other, value, msg=lambda text, name=name: f"{name}: {text}")


def test_rows_of_nan_stay_alone(device: torch.device) -> None:
    a, b, weight, bias, upstream = inputs((20, 40), device)
    expected = run(FusedResidualNorm.apply, a, b, weight, bias, upstream)
    a[7] = torch.nan
    for value, alone in zip(run(FusedResidualNorm.apply, a, b, weight, bias, upstream)[:3], expected, strict=False):
        assert value[7].isnan().all()
        others = torch.arange(20, device=device) != 7
        assert torch.equal(value[others], alone[others])


def test_gradients_reach_shared_inputs(device: torch.device) -> None:
    """a and b have one gradient tensor: neither more gradients of one, nor what is done to one, harm the other."""
    a, b, weight, bias, upstream = inputs((6, 8), device)

    def gradients(op) -> list[Tensor]:
        c, d, e = (tensor.detach().clone().requires_grad_() for tensor in (a, b, b))
        u = c * 3
        ((op(u, d, weight, bias, EPS) + op(u, u, weight, bias, EPS)) * upstream + u).sum().backward()
        (op(d, e, weight, bias, EPS) * upstream).sum().backward()
        d.grad.mul_(2)
        return [c.grad, d.grad, e.grad]

    for ours, plain in zip(gradients(FusedResidualNorm.apply), gradients(naive.residual_norm), strict=True):
        torch.testing.assert_close(ours, plain)
    leaves = [a.requires_grad_(), b.requires_grad_()]
    FusedResidualNorm.apply(*leaves, weight, bias, EPS).backward(upstream)
    assert a.grad.data_ptr() != b.grad.data_ptr()


@pytest.mark.parametrize("half", [BFLOAT16, FLOAT16])
def test_autocast_of_cuda_makes_float32(half: torch.dtype, device: torch.device) -> None:
    tensors = inputs((5, 40), device, half, half)
    assert run(FusedResidualNorm.apply, *tensors)[0].dtype == half
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)  # torch.autocast would not, where there is no GPU
    try:
        values = run(FusedResidualNorm.apply, *tensors)
        kept = run(lambda *args: FusedResidualNorm.apply(*args, False), *tensors)
    finally:
        torch.set_autocast_enabled("cuda", before)
    assert [value.dtype for value in values] == [FLOAT32, half, half, FLOAT32, FLOAT32]
    exact = run(naive.residual_norm, *(tensor.double() for tensor in tensors))
    assert error(values[0], exact[0]) < 1e-6
    assert [value.dtype for value in kept] == [half, half, half, FLOAT32, FLOAT32]
    torch.testing.assert_close(kept[0], values[0], check_dtype=False, rtol=torch.finfo(half).eps, atol=0)
    narrow = [tensor.to(half) for tensor in tensors]
    assert [value.dtype for value in run(FusedResidualNorm.apply, *narrow)] == [half] * 5


@pytest.mark.parametrize("dtype", [FLOAT32, torch.float64])
def test_off_cuda_the_bits_are_those_of_pytorch(dtype: torch.dtype) -> None:
    tensors = [tensor.to(dtype) for tensor in inputs((4, 7, 40), torch.device("cpu"))]

    def plain(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return layer_norm(a + b, (40,), weight, bias, eps)

    assert all(map(torch.equal, run(residual_norm, *tensors), run(plain, *tensors)))
    for name, value, exact in zip(NAMES, run(residual_norm, *tensors), run(naive.residual_norm, *tensors), strict=True):
        torch.testing.assert_close(value, exact, msg=lambda text, name=name: f"{name}: {text}")


def test_by_hand(device: torch.device) -> None:
    a, b = torch.tensor([[1.0, 2.0, 0.0, 5.0]]), torch.tensor([[0.0, 1.0, 1.0, 2.0]])  # 1, 3, 1, 7: mean 3, variance 6
    weight, bias = torch.tensor([1.0, 1.0, 2.0, 1.0]), torch.tensor([0.0, 5.0, 0.0, 1.0])
    expected = torch.tensor([[-2 / 3, 5.0, -4 / 3, 4 / 3 + 1]])  # eps of 3 makes the deviation 3
    for op in (naive.residual_norm, residual_norm, FusedResidualNorm.apply):
        values = (tensor.to(device) for tensor in (a, b, weight, bias))
        torch.testing.assert_close(op(*values, 3.0).cpu(), expected)


def test_what_triton_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else, and whatever is traced, is PyTorch's."""
    taken = []
    monkeypatch.setattr(package, "use_triton", lambda tensor: True)
    monkeypatch.setattr(package.FusedResidualNorm, "apply", lambda a, *rest: taken.append(a.shape) or a)

    class Module(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return residual_norm(a, b, torch.ones(8), torch.zeros(8))

    a, b = torch.randn(3, 8), torch.randn(3, 8)
    for wrong in (a.double(), torch.randn(3, 1025)):
        residual_norm(wrong, wrong, wrong.new_ones(wrong.shape[1]), wrong.new_zeros(wrong.shape[1]))
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Module(), (a, b), dynamic_shapes=({0: rows}, {0: rows}))
    some = torch.randn(5, 8)
    assert torch.equal(program.module()(some, some), layer_norm(some + some, (8,)))
    assert taken == []
    Module()(a, b)
    assert taken == [(3, 8)]


def test_gradcheck() -> None:
    leaves = [tensor.double().requires_grad_() for tensor in inputs((4, 3), torch.device("cpu"))[:4]]
    assert torch.autograd.gradcheck(residual_norm, leaves)


def test_mistakes() -> None:
    a, weight = torch.zeros(2, 3), torch.ones(3)
    for wrong in ((a, a[:1], weight, weight), (a, a, weight[:2], weight[:2]), (a, a, weight, weight[:1])):
        with pytest.raises(ValueError, match=r"\[\.\.\., D\] twice"):
            residual_norm(*wrong)
