"""Linear layers: values and gradients against naive in float64, every gradient by name; off CUDA PyTorch's bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import laser.ops.linear as package
from laser.ops.linear import GroupedLinear, Linear, grouped_linear, linear, naive, triton

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
    same_dtype, answers = run(plain, leaves, upstream), run(ours, leaves, upstream)
    for name, value, other, reference in zip(NAMES, answers, same_dtype, exact, strict=False):
        # Triton's interpreter cuts to bfloat16 where a GPU rounds: one more rounding of that dtype.
        cut = 2**-9 if value.dtype == BFLOAT16 and value.device.type == "cpu" else 0.0
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


@pytest.mark.parametrize("N", [1, 511, 513, 2048, 2049, 5000])
@pytest.mark.parametrize(("M", "D"), [(1, 1), (1, 40), (3, 16), (2, 300)])
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


@pytest.mark.parametrize("N", [0, 1])
@pytest.mark.parametrize("O", [0, 5])
def test_nothing(N: int, O: int, device: torch.device) -> None:
    for H in (2, 9):
        x, weight, bias, upstream = tensors((N, H, 4), (H, 4, O), (H, O), (N, H, O), device=device)
        for leaves in ([x, weight, bias], [x, weight, None]):
            found = run(GroupedLinear.apply, leaves, upstream)
            for value, expected in zip(found, run(plain_grouped, leaves, upstream), strict=True):
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
    for name in ("Linear", "GroupedLinear"):
        monkeypatch.setattr(getattr(package, name), "apply", lambda x, *rest, name=name: taken.append(name) or x)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return grouped_linear(linear(x, torch.eye(4), torch.ones(4))[:, None], torch.eye(4)[None], torch.ones(1, 4))

    x = torch.randn(3, 4)
    linear(x.double(), torch.eye(4).double())
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Module(), (x,), dynamic_shapes=({0: rows},))
    some = torch.randn(5, 4)
    torch.testing.assert_close(program.module()(some), (some + 2)[:, None])
    assert taken == []
    Module()(x)
    assert taken == ["Linear", "GroupedLinear"]


def test_gradcheck() -> None:
    cpu = torch.device("cpu")
    x, weight, bias = tensors((4, 2, 3), (2, 3, 2), (2, 2), device=cpu, dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    assert torch.autograd.gradcheck(grouped_linear, leaves)
    assert torch.autograd.gradcheck(linear, [x, weight[0].T, bias[0]])


def test_mistakes(as_on_a_gpu: None, device: torch.device) -> None:
    x, weight = torch.zeros(2, 3, 4, device=device), torch.ones(3, 4, 5, device=device)
    for op, wrong in ((linear, weight[0]), (grouped_linear, weight[:2]), (grouped_linear, weight.bfloat16())):
        with pytest.raises(RuntimeError):
            op(x, wrong)
