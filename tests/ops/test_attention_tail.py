"""What follows attention: kernels against naive in float64, every gradient by name; elsewhere the parts it replaces."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import laser.ops.attention_tail as package
from laser.model.gsta import GlobalLayer
from laser.model.half_copies import HalfCopies
from laser.ops.attention_tail import attention_tail, naive
from laser.ops.attention_tail.functions import AttentionTail

NAMES = [
    "y", "d_user", "d_pooled", "d_value", "d_out", "d_inner_weight", "d_inner_bias",
    "d_weight1", "d_bias1", "d_weight2", "d_bias2", "d_outer_weight", "d_outer_bias",
]  # fmt: skip
NORMS = {4, 5, 10, 11}
BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
CPU = torch.device("cpu")
only_interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU"
)


def inputs(N: int, D: int, H: int, F: int, dtype: torch.dtype, device: torch.device = CPU) -> list[Tensor]:
    """In the order of the op; norms' weights are float32 at least."""
    shapes = (N, D), (N, H, D), (H, D, D // H), (D, D), (D,), (D,), (F, D), (F,), (D, F), (D,), (D,), (D,)
    scales = 1, 1, D**-0.5, D**-0.5, 1, 1, D**-0.5, 1, F**-0.5, 1, 1, 1
    tensors = [torch.randn(shape) * scale for shape, scale in zip(shapes, scales, strict=True)]
    norms = torch.promote_types(dtype, FLOAT32)
    return [tensor.to(device, norms if place in NORMS else dtype) for place, tensor in enumerate(tensors)]


def kernels(*tensors: Tensor) -> Tensor:
    """The op as it calls the kernels, whatever the device."""
    user, pooled, value, out, inner_weight, inner_bias, weight1, bias1, weight2, bias2, *outer = tensors
    rest = (value, out, weight1, bias1, weight2, bias2, inner_weight, inner_bias, *outer)
    return AttentionTail.apply(user, pooled, *rest, 1e-5, user.dtype)


def run(op, tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    y = op(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y.dtype))]


def error(value: Tensor, exact: Tensor) -> float:
    return float((value.detach().double() - exact).norm() / exact.norm().clamp(min=1e-30))


def check(tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """Kernels obey the acceptance rule for these tensors; their answers."""
    exact = run(naive.attention_tail, [tensor.double() for tensor in tensors], upstream.double())
    plain, ours = run(naive.attention_tail, tensors, upstream), run(kernels, tensors, upstream)
    cut = 2**-8 if tensors[1].dtype == BFLOAT16 and upstream.device.type == "cpu" else 0.0  # the interpreter cuts
    for name, value, same_dtype, reference in zip(NAMES, ours, plain, exact, strict=True):
        allowed = 2 * error(same_dtype, reference) + 4 * torch.finfo(torch.float32).eps + cut
        assert (value.dtype, value.shape) == (same_dtype.dtype, same_dtype.shape), name
        assert error(value, reference) <= allowed, f"{name}: {error(value, reference):.2e} > {allowed:.2e}"
    return ours


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize(
    ("N", "D", "H", "F"),
    [
        (0, 32, 2, 128),
        (1, 32, 1, 16),
        (15, 64, 2, 256),
        (16, 32, 2, 128),
        (17, 64, 1, 32),
        (50, 128, 2, 512),
        (20, 128, 1, 512),
        (33, 128, 8, 64),
    ],
)
def test_output_and_gradients(N: int, D: int, H: int, F: int, dtype: torch.dtype, device: torch.device) -> None:
    check(inputs(N, D, H, F, dtype, device), torch.randn(N, D).to(device, dtype))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_a_float32_query(dtype: torch.dtype, device: torch.device) -> None:
    """As under autocast; everything else of naive is float32 then, of the same values."""
    user, *rest = inputs(21, 64, 2, 128, dtype, device)
    tensors, upstream = [user.float() + 1e-4, *rest], torch.randn(21, 64).to(device)
    exact = run(naive.attention_tail, [tensor.double() for tensor in tensors], upstream.double())
    plain, ours = run(naive.attention_tail, tensors, upstream), run(kernels, tensors, upstream)
    cut = 2**-8 if dtype == BFLOAT16 and device.type == "cpu" else 0.0
    for name, value, same_dtype, reference in zip(NAMES, ours, plain, exact, strict=True):
        assert value.dtype == same_dtype.dtype, name
        assert error(value, reference) <= 2 * error(same_dtype, reference) + cut, name


def test_strides(device: torch.device) -> None:
    """Rows and weights that are transposed, an upstream that is expanded: the bits of contiguous ones."""
    tensors, upstream = inputs(18, 32, 2, 64, FLOAT16, device), torch.randn(32).to(device, FLOAT16).expand(18, 32)
    expected = run(kernels, tensors, upstream.contiguous())
    strided = [tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor for tensor in tensors]
    found = run(kernels, strided, upstream)
    for name, value, same in zip(NAMES, found, expected, strict=True):
        torch.testing.assert_close(value, same, msg=lambda text, name=name: f"{name}: {text}")
    assert found[3].stride() == strided[2].stride()


def test_equal_bits_and_a_batch_split_in_two(device: torch.device) -> None:
    tensors, upstream = inputs(40, 32, 2, 128, FLOAT16, device), torch.randn(40, 32).to(device, FLOAT16)
    whole = run(kernels, tensors, upstream)
    assert all(map(torch.equal, whole, run(kernels, tensors, upstream)))
    parts = [
        run(kernels, [tensors[0][some], tensors[1][some], *tensors[2:]], upstream[some])
        for some in (slice(0, 7), slice(7, 40))
    ]
    for place in (0, 1, 2):
        assert torch.equal(torch.cat([part[place] for part in parts]), whole[place]), NAMES[place]
    nothing = run(kernels, tensors, torch.zeros_like(upstream))
    assert not any(gradient.any() for gradient in nothing[1:])


def parts(user, pooled, value, out, inner_weight, inner_bias, weight1, bias1, weight2, bias2, *outer) -> Tensor:
    """PyTorch's."""
    linear, norm = nn.functional.linear, nn.functional.layer_norm
    v = torch.einsum("nhi,hio->nho", pooled, value).flatten(1)
    a = norm(user + linear(v, out), out.shape[:1], inner_weight, inner_bias)
    return norm(a + linear(nn.functional.gelu(linear(a, weight1, bias1)), weight2, bias2), out.shape[:1], *outer)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_elsewhere_it_is_the_parts(dtype: torch.dtype) -> None:
    tensors, upstream = inputs(6, 32, 2, 64, dtype), torch.randn(6, 32, dtype=dtype)
    found = run(attention_tail, tensors, upstream)
    assert all(map(torch.equal, found, run(parts, tensors, upstream)))
    for name, value, reference in zip(NAMES, found, run(naive.attention_tail, tensors, upstream), strict=True):
        torch.testing.assert_close(value, reference, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """As on a GPU: what goes to the kernels."""
    taken: list[torch.dtype] = []
    apply = AttentionTail.apply
    monkeypatch.setattr(package, "use_triton", lambda tensor: tensor.dtype != FLOAT64)
    monkeypatch.setattr(AttentionTail, "apply", lambda *args: taken.append(args[1].dtype) or apply(*args))
    return taken


def layer_of(D: int, H: int) -> GlobalLayer:
    """With norms and biases that are not what they begin with."""
    layer = GlobalLayer(D, H, 4)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter))
    return layer


@only_interpreted
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_a_layer_under_autocast(
    dtype: torch.dtype, launched: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every parameter's gradient by its name; at most twice as far from the truth as without the kernels."""
    layer, user, pooled = layer_of(64, 2), torch.randn(19, 64), torch.randn(19, 2, 64).to(dtype)
    named = {name: p for name, p in layer.named_parameters() if name not in ("heads.query_HDQ", "heads.key_HDQ")}
    upstream = torch.randn(19, 64)

    def answers(kind: torch.dtype) -> list[Tensor]:
        one = copy.deepcopy(layer).to(kind)
        leaves = [user.to(kind).requires_grad_(), pooled.to(torch.promote_types(kind, dtype)).requires_grad_()]
        y = one.after_attention(*leaves)
        wanted = [p for name, p in one.named_parameters() if name in named]
        return [y.detach(), *torch.autograd.grad(y, [*leaves, *wanted], upstream.to(y.dtype))]

    exact = answers(FLOAT64)
    assert not launched
    with torch.autocast("cpu", dtype):
        ours = answers(FLOAT32)
        assert launched == [dtype]
        monkeypatch.setattr(package, "use_triton", lambda tensor: False)
        plain = answers(FLOAT32)
    assert len(launched) == 1
    assert all(value.dtype == FLOAT32 for value in ours)
    cut = 2**-8 if dtype == BFLOAT16 else 0.0
    for name, value, same, reference in zip(["y", "user", "pooled", *named], ours, plain, exact, strict=True):
        assert error(value, reference) <= 2 * error(same, reference) + cut, name


@only_interpreted
def test_what_goes_to_the_kernels(launched: list[torch.dtype]) -> None:
    tensors = inputs(4, 32, 2, 64, BFLOAT16)
    assert attention_tail(*tensors).dtype == BFLOAT16
    assert launched == [BFLOAT16]
    launched.clear()
    attention_tail(tensors[0][:0], tensors[1][:0], *tensors[2:])
    assert launched == [BFLOAT16]
    launched.clear()
    for D, H, F in ((16, 1, 64), (48, 1, 64), (256, 2, 64), (32, 4, 64), (32, 2, 96), (32, 2, 8)):
        attention_tail(*inputs(4, D, H, F, BFLOAT16))
    attention_tail(*inputs(4, 32, 2, 64, FLOAT32))
    with torch.autocast("cpu", FLOAT16):
        for dtype in (FLOAT32, FLOAT16):
            user, *rest = inputs(4, 32, 2, 64, FLOAT32)
            y, d_user, *_ = run(attention_tail, [user.to(dtype), *rest], torch.ones(4, 32))
            assert (y.dtype, d_user.dtype) == (FLOAT32, dtype)
    assert launched == [FLOAT16] * 2


@only_interpreted
def test_what_does_not_fit(launched: list[torch.dtype]) -> None:
    """Is an error of the parts: kernels would read beyond the end of a tensor."""
    for place in range(12):
        tensors = inputs(4, 32, 2, 64, FLOAT16)
        tensors[place] = torch.cat([tensors[place]] * 2, -1)
        with pytest.raises((RuntimeError, ValueError)):
            attention_tail(*tensors)
    for place in set(range(12)) - NORMS:
        tensors = inputs(4, 32, 2, 64, FLOAT16)
        tensors[place] = tensors[place].bfloat16()
        # PyTorch adds two kinds of half precision up, as float32, which does not fit the weights that follow.
        with pytest.raises(RuntimeError):
            attention_tail(*tensors)
    assert not launched


@only_interpreted
def test_what_is_traced_goes_elsewhere(launched: list[torch.dtype]) -> None:
    """Of any number of rows."""

    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer_of(32, 2)

        def forward(self, user: Tensor, pooled: Tensor) -> Tensor:
            return self.layer.after_attention(user, pooled)

    tail, rows = Tail().bfloat16(), torch.export.Dim("rows", min=2)
    user, pooled = (torch.randn(*shape, dtype=BFLOAT16) for shape in ((3, 32), (3, 2, 32)))
    program = torch.export.export(tail, (user, pooled), dynamic_shapes={"user": {0: rows}, "pooled": {0: rows}})
    assert program.module()(torch.cat([user, user]), torch.cat([pooled, pooled])).shape == (6, 32)
    assert not launched
    tail(user, pooled)
    assert launched == [BFLOAT16]


@only_interpreted
def test_parameters_are_cast_as_they_are(launched: list[torch.dtype]) -> None:
    """So that copies in half precision, made in one launch, stand in for them; norms stay float32."""

    class Tail(GlobalLayer):
        def forward(self, user: Tensor, pooled: Tensor) -> Tensor:  # type: ignore[override]
            return self.after_attention(user, pooled)

    tail, given = Tail(32, 2, 4), {"user": torch.randn(5, 32), "pooled": torch.randn(5, 2, 32)}
    copies = HalfCopies(tail, list(tail.parameters()), "cpu", BFLOAT16, given)
    assert sorted(copies.by_name) == [
        "ffn.0.bias", "ffn.0.weight", "ffn.2.bias", "ffn.2.weight", "heads.value_HDV", "out.weight",
    ]  # fmt: skip
    with torch.autocast("cpu", BFLOAT16):
        y = copies(**given)
        assert torch.equal(y, tail(**given))
    leaves, named = copies.leaves(), [name for name, _ in tail.named_parameters()]
    gradients = torch.autograd.grad(y.sum(), leaves, allow_unused=True)
    for name, leaf, gradient in zip(named, leaves, gradients, strict=True):
        if name not in ("heads.query_HDQ", "heads.key_HDQ"):
            assert gradient is not None, name
            assert (gradient.dtype, gradient.stride()) == (leaf.dtype, leaf.stride()), name
    assert len(launched) == 3
