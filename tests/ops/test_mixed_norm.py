"""Layer norm of mixed tokens and their own: Triton against naive in float64, every gradient by name; what it leaves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

import laser.ops.mixed_norm as package
from laser.ops.mixed_norm import FusedMixedNorm, mix_tokens, mixed_norm, naive, triton

NAMES = ["normed", "d_x", "d_weight", "d_bias"]
EPS = 1e-5
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


def inputs(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype = FLOAT32) -> list[Tensor]:
    """x, weight, bias and the gradient of the norm."""
    weight, bias = torch.rand(shape[-1]) + 0.5, torch.randn(shape[-1])
    x, upstream = (torch.randn(shape).to(dtype) for _ in range(2))
    return [tensor.to(device) for tensor in (2 * x + 1, weight, bias, upstream)]


def run(op, x: Tensor, weight: Tensor, bias: Tensor, upstream: Tensor) -> list[Tensor]:
    """The norm, and the gradients of x, weight and bias."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    normed = op(*leaves, EPS)
    return [normed.detach(), *torch.autograd.grad(normed, leaves, upstream.to(normed.dtype))]


def error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def check(tensors: list[Tensor]) -> list[Tensor]:
    """Triton obeys the acceptance rule for these tensors, twice with the same bits; its answers."""
    exact = run(naive.mixed_norm, *(tensor.double() for tensor in tensors))
    plain = run(naive.mixed_norm, *tensors)
    ours, again = (run(FusedMixedNorm.apply, *tensors) for _ in range(2))
    on_cpu = tensors[0].device.type == "cpu"
    for name, value, repeated, same_dtype, reference in zip(NAMES, ours, again, plain, exact, strict=True):
        # Triton's interpreter cuts to bfloat16 where a GPU rounds: one more rounding of that dtype.
        cut = 2**-9 if value.dtype == BFLOAT16 and on_cpu else 0.0
        allowed = 2 * error(same_dtype, reference) + 4 * torch.finfo(FLOAT32).eps + cut
        assert (value.dtype, value.shape) == (same_dtype.dtype, same_dtype.shape), name
        assert error(value, reference) <= allowed, f"{name}: {error(value, reference):.2e} > {allowed:.2e}"
        assert torch.equal(value, repeated), name
    return ours


@pytest.mark.parametrize(
    ("M", "D"),
    [(1, 16), (1, 64), (2, 4), (2, 64), (4, 16), (8, 8), (8, 128), (16, 16), (16, 256), (32, 256), (8, 1024)],
)
@pytest.mark.parametrize("B", [1, 3, 17])
def test_output_and_gradients(B: int, M: int, D: int, device: torch.device) -> None:
    """Of tiles of many samples, the last of them not full, and of one; up to the largest."""
    check(inputs((B, M, D), device))


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 1, 1), (3, 1, 2), (3, 2, 2)])
def test_few_values(shape: tuple[int, int, int], device: torch.device) -> None:
    """Their gradients cancel to 0 or nearly so, which no error is relative to."""
    tensors = inputs(shape, device)
    exact = run(naive.mixed_norm, *(tensor.double() for tensor in tensors))
    for name, value, reference in zip(NAMES, run(FusedMixedNorm.apply, *tensors), exact, strict=True):
        torch.testing.assert_close(
            value.double(), reference, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize(("M", "D"), [(4, 32), (16, 256)])
def test_half_precision(dtype: torch.dtype, M: int, D: int, device: torch.device) -> None:
    check(inputs((5, M, D), device, dtype))


@pytest.mark.parametrize("half", [(1,), (2,), (1, 2)])
def test_weights_in_half_precision(half: tuple[int, ...], device: torch.device) -> None:
    """One of both or both; autograd would hide a gradient of the other's dtype, but not its rounding."""
    tensors = inputs((9, 4, 32), device)
    check([tensor.half() if at in half else tensor for at, tensor in enumerate(tensors)])


def test_sums_are_not_rounded(device: torch.device) -> None:
    """One rounding (a cut in the interpreter) is at most 2^-7 of a value, whatever cancels in it."""
    tensors = inputs((5, 8, 64), device, BFLOAT16)
    exact = run(naive.mixed_norm, *(tensor.double() for tensor in tensors))
    for name, value, reference in zip(NAMES[:2], run(FusedMixedNorm.apply, *tensors), exact, strict=False):
        torch.testing.assert_close(
            value.double(), reference, rtol=2**-7, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("programs", [1, 2, 3, 200])
def test_programs_take_turns(programs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs with many tiles each, and more parts than a tile of the last kernel has."""
    monkeypatch.setattr(triton, "MOST_PROGRAMS", programs)
    monkeypatch.setattr(triton, "TILE_ELEMENTS", 128)
    check(inputs((301, 4, 16), device))


def test_strides(device: torch.device) -> None:
    """Rows are read where they lie: group by group, cut out of wider ones, or one row for all tokens."""
    x, weight, bias, upstream = inputs((6, 4, 32), device)
    one = torch.randn(6, 1, 32, device=device).expand(6, 4, 32)
    wide = torch.full((6, 4, 40), torch.nan, device=device)

    def otherwise(tensor: Tensor) -> list[Tensor]:
        return [
            tensor.transpose(0, 1).contiguous().transpose(0, 1),
            tensor.transpose(1, 2).contiguous().transpose(1, 2),
            torch.cat([wide, tensor], 2)[..., 40:],
            torch.stack([tensor, wide[..., :32]], 1)[:, 0],
        ]

    for gradient in (upstream, one):
        expected = run(FusedMixedNorm.apply, x, weight, bias, gradient.contiguous())
        for strided in otherwise(x):
            assert not strided.is_contiguous()
            found = run(FusedMixedNorm.apply, strided, weight, bias, gradient)
            for name, *values in zip(NAMES, found, expected, strict=True):
                assert torch.equal(*values), name
    expected = run(FusedMixedNorm.apply, x, weight, bias, upstream)
    for strided in otherwise(upstream):
        assert all(map(torch.equal, run(FusedMixedNorm.apply, x, weight, bias, strided), expected))
    pair = torch.stack([weight, bias], 1)
    check([x, pair[:, 0], pair[:, 1], upstream])
    check([one, weight, bias, one])
    check([x, weight, bias, torch.ones((), device=device).expand(6, 4, 32)])


def test_samples_behind_the_end_have_no_part_in_it(device: torch.device) -> None:
    x, weight, bias, upstream = inputs((13, 4, 16), device)
    expected = run(FusedMixedNorm.apply, x, weight, bias, upstream)
    padded = [torch.cat([each, torch.full((16, 4, 16), torch.nan, device=device)])[:13] for each in (x, upstream)]
    assert all(map(torch.equal, run(FusedMixedNorm.apply, padded[0], weight, bias, padded[1]), expected))


def test_large_offset(device: torch.device) -> None:
    """The variance of values of mean 1000 and spread 1 is not what is left of a difference of squares."""
    x, *rest = inputs((5, 8, 64), device)
    check([x + 1000, *rest])


@pytest.mark.parametrize(("M", "D"), [(4, 16), (16, 256)])
def test_nothing(M: int, D: int, device: torch.device) -> None:
    normed, d_x, *of_weights = run(FusedMixedNorm.apply, *inputs((0, M, D), device))
    assert normed.shape == d_x.shape == (0, M, D)
    assert [gradient.tolist() for gradient in of_weights] == [[0.0] * D] * 2


def test_batch_split_in_two(device: torch.device) -> None:
    x, weight, bias, upstream = inputs((50, 4, 16), device)
    whole = run(FusedMixedNorm.apply, x, weight, bias, upstream)
    first, second = (
        run(FusedMixedNorm.apply, x[part], weight, bias, upstream[part]) for part in (slice(0, 23), slice(23, None))
    )
    for name, value, one, other in zip(NAMES[:2], whole, first, second, strict=False):
        assert torch.equal(torch.cat([one, other]), value), name
    for name, value, one, other in zip(NAMES[2:], whole[2:], first[2:], second[2:], strict=True):
        torch.testing.assert_close(one + other, value, msg=lambda text, name=name: f"{name}: {text}")


def test_a_sample_of_nan_stays_alone(device: torch.device) -> None:
    x, weight, bias, upstream = inputs((20, 4, 16), device)
    expected = run(FusedMixedNorm.apply, x, weight, bias, upstream)
    x[7, 2] = torch.nan
    others = torch.arange(20, device=device) != 7
    for value, alone in zip(run(FusedMixedNorm.apply, x, weight, bias, upstream)[:2], expected, strict=False):
        assert value[7].isnan().all()
        assert torch.equal(value[others], alone[others])


@pytest.mark.parametrize("half", [BFLOAT16, FLOAT16])
def test_autocast_of_cuda_makes_float32(half: torch.dtype, device: torch.device) -> None:
    tensors = inputs((5, 4, 32), device, half)
    assert run(FusedMixedNorm.apply, *tensors)[0].dtype == half
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)  # torch.autocast would not, where there is no GPU
    try:
        values = run(FusedMixedNorm.apply, *tensors)
        kept = run(lambda *args: FusedMixedNorm.apply(*args, False), *tensors)
    finally:
        torch.set_autocast_enabled("cuda", before)
    assert [value.dtype for value in values] == [FLOAT32, half, FLOAT32, FLOAT32]
    assert error(values[0], run(naive.mixed_norm, *(tensor.double() for tensor in tensors))[0]) < 1e-6
    assert [value.dtype for value in kept] == [half, half, FLOAT32, FLOAT32]
    torch.testing.assert_close(kept[0], values[0], check_dtype=False, rtol=torch.finfo(half).eps, atol=0)


@pytest.mark.parametrize("dtype", [FLOAT32, torch.float64])
def test_off_cuda_the_bits_are_those_of_pytorch(dtype: torch.dtype) -> None:
    tensors = [tensor.to(dtype) for tensor in inputs((4, 3, 12), torch.device("cpu"))]

    def plain(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return layer_norm(mix_tokens(x) + x, (12,), weight, bias, eps)

    assert all(map(torch.equal, run(mixed_norm, *tensors), run(plain, *tensors)))
    for name, value, exact in zip(NAMES, run(mixed_norm, *tensors), run(naive.mixed_norm, *tensors), strict=True):
        torch.testing.assert_close(value, exact, msg=lambda text, name=name: f"{name}: {text}")


def test_by_hand(device: torch.device) -> None:
    x = torch.tensor([[[0.0, 1.0, 1.0, 2.0], [1.0, 5.0, 4.0, 2.0]]])  # mixed: 0 1 1 5, 1 2 4 2
    weight, bias = torch.tensor([1.0, 1.0, 2.0, 1.0]), torch.tensor([0.0, 5.0, 0.0, 1.0])
    # The sums are 0 2 2 7 (mean 2.75, variance 6.6875) and 2 7 8 4 (5.25, 5.6875); with eps, deviations of 3 and 8^0.5.
    deviation = torch.tensor([[9.0], [8.0]]).sqrt()
    normal = torch.tensor([[[-2.75, -0.75, -0.75, 4.25], [-3.25, 1.75, 2.75, -1.25]]]) / deviation
    for op in (naive.mixed_norm, mixed_norm, FusedMixedNorm.apply):
        values = (tensor.to(device) for tensor in (x, weight, bias))
        torch.testing.assert_close(op(*values, 2.3125).cpu(), normal * weight + bias)


def test_what_triton_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else, and whatever is traced, is the norm of a residual sum."""
    taken = []
    monkeypatch.setattr(package, "use_triton", lambda tensor: True)
    monkeypatch.setattr(package.FusedMixedNorm, "apply", lambda x, *rest: taken.append(tuple(x.shape)) or x)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return mixed_norm(x, torch.ones(8), torch.zeros(8))

    x = torch.randn(3, 4, 8)
    left = [(2, 3, 12), (2, 3, 6), (2, 4, 12), (2, 16, 1024), (2, 1, 2048), (1 << 30, 2, 4)]
    for other in (x.double(), *(torch.randn(()).expand(shape) for shape in left[:-1])):
        y = mixed_norm(other, weight := other.new_ones(other.shape[2]), weight)
        assert torch.equal(y, layer_norm(mix_tokens(other) + other, weight.shape, weight, weight))
    assert not package._serves(torch.randn(()).expand(left[-1]), torch.ones(4), torch.ones(4))
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Module(), (x,), dynamic_shapes=({0: rows},))
    some = torch.randn(5, 4, 8)
    assert torch.equal(program.module()(some), layer_norm(mix_tokens(some) + some, (8,)))
    assert taken == []
    for shape in ((3, 4, 8), (2, 8, 1024), (0, 4, 8)):
        mixed_norm(torch.zeros(shape), torch.ones(shape[2]), torch.ones(shape[2]))
    assert taken == [(3, 4, 8), (2, 8, 1024), (0, 4, 8)]


def test_gradcheck() -> None:
    leaves = [tensor.double().requires_grad_() for tensor in inputs((3, 2, 4), torch.device("cpu"))[:3]]
    assert torch.autograd.gradcheck(mixed_norm, leaves)


@pytest.mark.parametrize("on_a_gpu", [False, True])
def test_mistakes(monkeypatch: pytest.MonkeyPatch, on_a_gpu: bool) -> None:
    monkeypatch.setattr(package, "use_triton", lambda tensor: on_a_gpu)
    x, weight = torch.zeros(2, 2, 4), torch.ones(4)
    for wrong in ((weight[:2], weight[:2]), (weight, weight[:1])):
        with pytest.raises(ValueError, match=r"\[\.\.\., D\] twice"):
            mixed_norm(x, *wrong)
    with pytest.raises(RuntimeError, match="shape"):
        mixed_norm(torch.zeros(2, 8, 4), weight, weight)
