"""Linear layers: values and gradients against naive in float64, every gradient by name; off CUDA PyTorch's bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import laser.ops.linear as package
from laser.ops.linear import grouped_linear, linear, naive, side_by_side
from laser.ops.linear.functions import GroupedLinear, Linear, SideBySide

NAMES = ["y", "d_x", "d_weight", "d_bias"]
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


def run(op, leaves: list[Tensor | None], upstream: Tensor) -> list[Tensor]:
    """The values, and the gradients of x, weight and bias."""
    leaves = [leaf if leaf is None else leaf.detach().requires_grad_() for leaf in leaves]
    y = op(*leaves)
    wanted = [leaf for leaf in leaves if leaf is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, upstream.to(y.dtype))]


def error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def check(ours, specification, plain, leaves: list[Tensor | None], upstream: Tensor) -> list[Tensor]:
    """The acceptance rule: twice the error of plain PyTorch in the same dtype; the answers."""
    exact = run(specification, [leaf if leaf is None else leaf.double() for leaf in leaves], upstream.double())
    names = NAMES[: len(exact)] if len(leaves) <= 3 else ["y", *(f"gradient {at}" for at in range(len(leaves)))]
    same_dtype, answers = run(plain, leaves, upstream), run(ours, leaves, upstream)
    for name, value, other, reference in zip(names, answers, same_dtype, exact, strict=True):
        # Triton's interpreter cuts to bfloat16 where a GPU rounds, which is wrong by up to a last place.
        cut = 2**-7 if value.dtype == BFLOAT16 and value.device.type == "cpu" else 0.0
        allowed = 2 * error(other, reference) + 4 * torch.finfo(FLOAT32).eps + cut
        assert (value.dtype, value.shape) == (other.dtype, other.shape), name
        assert error(value, reference) <= allowed, f"{name}: {error(value, reference):.2e} > {allowed:.2e}"
    return answers


def tensors(*shapes: tuple[int, ...], device: torch.device, dtype: torch.dtype = FLOAT32) -> list[Tensor]:
    return [torch.randn(shape).to(device, dtype) for shape in shapes]


def plain_grouped(x_NHI: Tensor, weight_HIO: Tensor, bias_HO: Tensor | None) -> Tensor:
    y_NHO = torch.einsum("nhi,hio->nho", x_NHI, weight_HIO)
    return y_NHO if bias_HO is None else y_NHO + bias_HO


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("shape", [(1, 3), (2049, 5), (700, 40), (3, 4, 24), (24,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], dtype: torch.dtype, bias: bool, device: torch.device) -> None:
    x, weight, of_bias, upstream = tensors(shape, (17, shape[-1]), (17,), (*shape[:-1], 17), device=device, dtype=dtype)
    check(Linear.apply, naive.linear, functional.linear, [x, weight, of_bias if bias else None], upstream)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 3, 2), (50, 2, 16, 8), (2100, 3, 5, 7), (40, 9, 4, 4), (30, 2, 128, 600)], ids=str
)
@pytest.mark.parametrize("bias", [True, False])
def test_grouped(sizes: tuple[int, ...], dtype: torch.dtype, bias: bool, device: torch.device) -> None:
    """Small weights, and those whose gradient is a batched product: of many groups, or of many tiles."""
    N, H, I, O = sizes
    x, weight, of_bias, upstream = tensors((N, H, I), (H, I, O), (H, O), (N, H, O), device=device, dtype=dtype)
    check(GroupedLinear.apply, naive.grouped_linear, plain_grouped, [x, weight, of_bias if bias else None], upstream)


@pytest.mark.parametrize("groups", [3, 9])
def test_strides(groups: int, device: torch.device) -> None:
    """Inputs, weights and gradients of any strides; gradients lie as what they are of does."""
    x, weight, bias, upstream = tensors((6, groups, 4), (groups, 4, 5), (groups, 5), (6, groups, 5), device=device)
    expected = run(GroupedLinear.apply, [x, weight, bias], upstream)
    wide = torch.cat([x, x], 2)[..., :4]
    one = upstream[:1, :, :1].expand(6, groups, 5)
    for values in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x.mT.contiguous().mT, wide):
        for weights in (weight, weight.mT.contiguous().mT):
            for above in (upstream, upstream.transpose(0, 1).contiguous().transpose(0, 1), upstream.mT.contiguous().mT):
                found = run(GroupedLinear.apply, [values, weights, bias], above)
                for name, value, reference in zip(NAMES, found, expected, strict=True):
                    torch.testing.assert_close(value, reference, msg=lambda text, name=name: f"{name}: {text}")
                assert found[2].stride() == weights.stride()
                assert values is wide or found[1].stride() == values.stride()
            check(GroupedLinear.apply, naive.grouped_linear, plain_grouped, [values, weights, bias], one)
    same = x[:, :1].expand(6, groups, 4)
    check(GroupedLinear.apply, naive.grouped_linear, plain_grouped, [same, weight, bias], upstream)
    for values in (wide[:, 0], x.mT.contiguous().mT[:, 0], x[0].expand(6, groups, 4)[:, 0]):
        for above in (upstream[:, 0], upstream.mT.contiguous().mT[:, 0], one[:, 0]):
            check(Linear.apply, naive.linear, functional.linear, [values, weight[0].T, bias[0]], above)


def layers(
    sizes: list[tuple[int, int]], N: int, device: torch.device, dtype: torch.dtype = FLOAT32
) -> tuple[list[Tensor], Tensor]:
    """x, then all weights, then all biases, of sizes (I, O); and the gradient of the results."""
    shapes = [(N, sum(I for I, _ in sizes)), *((O, I) for I, O in sizes), *((O,) for _, O in sizes)]
    *leaves, upstream = tensors(*shapes, (N, sum(O for _, O in sizes)), device=device, dtype=dtype)
    return leaves, upstream


def apart(op):
    """``op`` of all inputs at once, as it is of the inputs of each."""

    def call(x: Tensor, *rest: Tensor) -> Tensor:
        weights, biases = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        parts = x.split([weight.shape[1] for weight in weights], 1)
        # The first layer has two parts where it can.
        return op(
            [[*parts[0].split((parts[0].shape[1] + 1) // 2, 1)], *([part] for part in parts[1:])], weights, biases
        )

    return call


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("N", [1, 33, 2100])
@pytest.mark.parametrize(
    "sizes",
    [[(5, 3)], [(8, 4)] * 3, [(16, 4), (8, 4), (8, 4), (4, 4), (8, 4)], [(8, 4), (8, 2), (8, 4), (4, 8), (4, 8)]],
    ids=str,
)
def test_side_by_side(sizes: list[tuple[int, int]], N: int, dtype: torch.dtype, device: torch.device) -> None:
    """One, some alike, and runs of those that are."""
    leaves, upstream = layers(sizes, N, device, dtype)
    specification, plain = apart(naive.side_by_side), apart(side_by_side)
    found = check(SideBySide.apply, specification, plain, leaves, upstream)
    assert all(value.stride() == leaf.stride() for value, leaf in zip(found[1:], leaves, strict=True))
    few = upstream if N > 100 else upstream[:1].expand_as(upstream)
    for strided in (few, upstream.mT.contiguous().mT):
        check(SideBySide.apply, specification, plain, leaves, strided)


def test_without_a_bias_nothing_is_copied(device: torch.device) -> None:
    """Results lie as rows of all groups, so that what follows flattens them in place."""
    x, weight, upstream = tensors((6, 2, 4), (2, 4, 5), (6, 2, 5), device=device)
    y, d_x, _ = run(GroupedLinear.apply, [x, weight, None], upstream)
    assert y.is_contiguous()
    assert d_x.is_contiguous()


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_needs_a_gradient_gets_one(wanted: tuple[bool, ...], device: torch.device) -> None:
    x, weight, bias, upstream = tensors((6, 2, 4), (2, 4, 5), (2, 5), (6, 2, 5), device=device)
    for op, leaves, above in (
        (GroupedLinear.apply, (x, weight, bias), upstream),
        (Linear.apply, (x, weight[0].T, bias[0]), upstream),
    ):
        expected = run(op, list(leaves), above)[1:]
        some = [leaf.detach().clone().requires_grad_(needed) for leaf, needed in zip(leaves, wanted, strict=True)]
        op(*some).backward(above)
        for leaf, needed, reference in zip(some, wanted, expected, strict=True):
            assert (leaf.grad is not None) == needed
            assert leaf.grad is None or torch.equal(leaf.grad, reference)


@pytest.mark.parametrize("N", [0, 1])
@pytest.mark.parametrize("O", [0, 5])
def test_nothing(N: int, O: int, device: torch.device) -> None:
    for H in (2, 9):
        x, weight, bias, upstream = tensors((N, H, 4), (H, 4, O), (H, O), (N, H, O), device=device)
        for leaves in ([x, weight, bias], [x, weight, None]):
            found = run(GroupedLinear.apply, leaves, upstream)
            for value, expected in zip(found, run(plain_grouped, leaves, upstream), strict=True):
                torch.testing.assert_close(value, expected)
        few, above = layers([(4, O), (4, O), (2, 3)], N, device)
        for value, expected in zip(
            run(SideBySide.apply, few, above), run(apart(naive.side_by_side), few, above), strict=True
        ):
            torch.testing.assert_close(value, expected)
        leaves = [x, weight[0].T, bias[0]]
        for value, expected in zip(
            run(Linear.apply, leaves, upstream), run(functional.linear, leaves, upstream), strict=True
        ):
            torch.testing.assert_close(value, expected)


def test_equal_bits(device: torch.device) -> None:
    x, weight, bias, upstream = tensors((3000, 2, 16), (2, 16, 8), (2, 8), (3000, 2, 8), device=device)
    first = run(GroupedLinear.apply, [x, weight, bias], upstream)
    assert all(map(torch.equal, first, run(GroupedLinear.apply, [x, weight, bias], upstream)))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "use_triton", lambda tensor: True)


@pytest.mark.parametrize("half", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize("bias", [True, False])
def test_autocast(half: torch.dtype, bias: bool, device: torch.device, as_on_a_gpu: None) -> None:
    """Computed in its dtype, and the gradients are those of what was cast."""
    x, weight, of_bias, upstream = tensors((50, 2, 16), (2, 16, 8), (2, 8), (50, 2, 8), device=device)
    for op, plain, leaves in (
        (grouped_linear, plain_grouped, [x, weight, of_bias]),
        (linear, functional.linear, [x, weight[0].T, of_bias[0]]),
    ):
        leaves = leaves if bias else [*leaves[:2], None]
        with torch.autocast(device.type, half):
            values = run(op, leaves, upstream)
        assert [value.dtype for value in values] == [half] + [FLOAT32] * (2 + bias)
        narrow = [leaf if leaf is None else leaf.to(half) for leaf in leaves]
        expected = run(plain, narrow, upstream.to(half))
        for name, value, reference in zip(NAMES, values, expected, strict=False):
            torch.testing.assert_close(
                value.to(half), reference, rtol=2e-2, atol=2e-2, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("dtype", [FLOAT32, torch.float64])
def test_off_cuda_the_bits_are_those_of_pytorch(dtype: torch.dtype) -> None:
    cpu = torch.device("cpu")
    x, weight, bias, upstream = tensors((7, 2, 16), (2, 16, 8), (2, 8), (7, 2, 8), device=cpu, dtype=dtype)
    for op, plain, leaves in (
        (linear, functional.linear, [x, weight[0].T, bias[0]]),
        (linear, functional.linear, [x, weight[0].T, None]),
        (grouped_linear, lambda x, w, _: torch.einsum("nhi,hio->nho", x, w), [x, weight, None]),
        (
            grouped_linear,
            lambda x, w, b: torch.baddbmm(b[:, None], x.transpose(0, 1), w).transpose(0, 1),
            [x, weight, bias],
        ),
    ):
        assert all(map(torch.equal, run(op, leaves, upstream), run(plain, leaves, upstream)))


def test_parts_of_several_dtypes(device: torch.device, as_on_a_gpu: None) -> None:
    """Are cast together; each gradient has the dtype of its part. Parameters are cast one by one, as they are."""
    leaves, upstream = layers([(8, 4), (8, 4)], 6, device)
    x, *parameters = leaves
    parts = [part.detach().requires_grad_() for part in (x[:, :3], x[:, 3:8].bfloat16(), x[:, 8:])]
    weights, biases = parameters[:2], parameters[2:]
    with torch.autocast(device.type, BFLOAT16):
        y = side_by_side([parts[:2], parts[2:]], weights, biases)
    expected = naive.side_by_side(
        [[part.bfloat16() for part in some] for some in (parts[:2], parts[2:])], weights, biases
    )
    assert y.dtype == BFLOAT16
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    found = torch.autograd.grad(y, parts, upstream.bfloat16())
    assert [gradient.dtype for gradient in found] == [FLOAT32, BFLOAT16, FLOAT32]
    for gradient, other in zip(found, torch.autograd.grad(expected, parts, upstream.bfloat16()), strict=True):
        torch.testing.assert_close(gradient, other, rtol=2e-2, atol=2e-2)


def test_by_hand(device: torch.device, as_on_a_gpu: None) -> None:
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]], device=device)
    weight, bias = torch.tensor([[1.0, 0.0], [3.0, 1.0]], device=device), torch.tensor([0.5, 0.0], device=device)
    upstream = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=device)
    of_x, of_weight, of_bias = [[7.0, 2.0], [15.0, 4.0]], [[1.0, -1.0], [2.0, 0.0]], [4.0, 6.0]
    expected = [[[1.5, 5.0], [0.5, -1.0]], of_x, of_weight, of_bias]
    for op in (naive.linear, linear):
        assert [value.tolist() for value in run(op, [x, weight, bias], upstream)] == expected
    groups = run(grouped_linear, [x[:, None], weight.T[None], bias[None]], upstream[:, None])
    assert [value.squeeze(1 if at < 2 else 0).tolist() for at, value in enumerate(groups)] == [
        *expected[:2],
        torch.tensor(of_weight).T.tolist(),
        of_bias,
    ]


def test_what_triton_takes(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64, and whatever is traced, is PyTorch's."""
    taken = []
    for name in ("Linear", "GroupedLinear", "SideBySide"):
        monkeypatch.setattr(getattr(package, name), "apply", lambda x, *rest, name=name: taken.append(name) or x)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = linear(x, torch.eye(4), torch.ones(4))
            x = side_by_side([[x[:, :1], x[:, 1:]]], [torch.eye(4)], [torch.ones(4)])
            return grouped_linear(x[:, None], torch.eye(4)[None], torch.ones(1, 4))

    x = torch.randn(3, 4)
    linear(x.double(), torch.eye(4).double())
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Module(), (x,), dynamic_shapes=({0: rows},))
    some = torch.randn(5, 4)
    torch.testing.assert_close(program.module()(some), (some + 3)[:, None])
    assert taken == []
    Module()(x)
    assert taken == ["Linear", "SideBySide", "GroupedLinear"]


def test_gradcheck() -> None:
    x, weight, bias = tensors((4, 2, 3), (2, 3, 2), (2, 2), device=torch.device("cpu"), dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    assert torch.autograd.gradcheck(grouped_linear, leaves)
    assert torch.autograd.gradcheck(linear, [x, weight[0].T, bias[0]])


def test_mistakes(as_on_a_gpu: None, device: torch.device) -> None:
    x, weight = torch.zeros(2, 3, 4, device=device), torch.ones(3, 4, 5, device=device)
    for op, wrong in ((linear, weight[0]), (grouped_linear, weight[:2]), (grouped_linear, weight.bfloat16())):
        with pytest.raises(RuntimeError):
            op(x, wrong)
