"""Queries of folded heads: kernels against naive in float64, every gradient by name; elsewhere what PyTorch gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import laser.ops.folded_query as package
from laser.model.folded import FoldedHeads
from laser.ops.folded_query import FoldedQuery, folded_query, naive

NAMES = ["y", "d_source", "d_query", "d_key"]
FLOAT32, FLOAT64 = torch.float32, torch.float64
CPU = torch.device("cpu")
only_interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU"
)


def inputs(B: int, H: int, D: int, Q: int, device: torch.device = CPU, dtype: torch.dtype = FLOAT32) -> list[Tensor]:
    return [torch.randn(shape).to(device, dtype) for shape in ((B, D), (H, D, Q), (H, D, Q))]


def run(op, tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    y = op(*leaves, 0.3)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y.dtype))]


def error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm().clamp(min=1e-30))


@pytest.mark.parametrize(
    ("B", "H", "D", "Q"),
    [(0, 2, 32, 16), (1, 1, 32, 16), (15, 3, 64, 32), (16, 2, 128, 64), (17, 1, 128, 128), (50, 2, 128, 16)],
)
def test_output_and_gradients(B: int, H: int, D: int, Q: int, device: torch.device) -> None:
    tensors, upstream = inputs(B, H, D, Q, device), torch.randn(B, H, D).to(device)
    exact = run(naive.folded_query, [tensor.double() for tensor in tensors], upstream.double())
    plain, ours = run(naive.folded_query, tensors, upstream), run(FoldedQuery.apply, tensors, upstream)
    floor = (8 if device.type == "cuda" else 4) * torch.finfo(FLOAT32).eps  # six passes of bfloat16 round, too
    for name, value, same_dtype, reference in zip(NAMES, ours, plain, exact, strict=True):
        assert (value.dtype, value.shape) == (same_dtype.dtype, same_dtype.shape), name
        assert error(value, reference) <= 2 * error(same_dtype, reference) + floor, name


def test_strides_and_equal_bits(device: torch.device) -> None:
    tensors, upstream = inputs(21, 2, 32, 16, device), torch.randn(32).to(device).expand(21, 2, 32)
    whole = run(FoldedQuery.apply, tensors, upstream.contiguous())
    assert all(map(torch.equal, whole, run(FoldedQuery.apply, tensors, upstream.contiguous())))
    found = run(FoldedQuery.apply, [tensor.mT.contiguous().mT for tensor in tensors], upstream)
    for name, value, same in zip(NAMES, found, whole, strict=True):
        torch.testing.assert_close(value, same, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """As on a GPU: what goes to the kernels."""
    taken: list[torch.Size] = []
    apply = FoldedQuery.apply
    monkeypatch.setattr(package, "use_triton", lambda tensor: True)
    monkeypatch.setattr(FoldedQuery, "apply", lambda *args: taken.append(args[1].shape) or apply(*args))
    return taken


@only_interpreted
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_heads_of_the_model(dtype: torch.dtype, launched: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    heads, source = FoldedHeads(32, 2, 16).to(dtype), torch.randn(5, 32, dtype=dtype)
    y = heads.query(source)
    assert len(launched) == (dtype == FLOAT32)
    launched.clear()
    monkeypatch.setattr(package, "use_triton", lambda tensor: False)
    plain = heads.query(source)
    query_BHQ = torch.einsum("bd,hdq->bhq", source, heads.query_HDQ) * 0.25
    assert torch.equal(plain, torch.einsum("nhi,hio->nho", query_BHQ, heads.key_HDQ.transpose(1, 2)))
    torch.testing.assert_close(y, plain)
    assert not launched


@only_interpreted
def test_what_goes_to_the_kernels(launched: list[torch.Size]) -> None:
    for B, H, D, Q in ((3, 1, 16, 16), (3, 1, 48, 16), (3, 1, 256, 16), (3, 1, 32, 8), (3, 1, 32, 48)):
        folded_query(*inputs(B, H, D, Q), 1.0)
    folded_query(*inputs(3, 1, 32, 16, CPU, torch.bfloat16), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert folded_query(*inputs(3, 1, 32, 16), 1.0).dtype == torch.bfloat16
    for place in range(3):
        tensors = inputs(3, 1, 32, 16)
        tensors[place] = torch.cat([tensors[place]] * 2, -1)
        with pytest.raises(RuntimeError):
            folded_query(*tensors, 1.0)
    assert not launched
    assert folded_query(*inputs(3, 5, 32, 16), 1.0).shape == (3, 5, 32)
    assert launched == [(5, 32, 16)]


@only_interpreted
def test_what_is_traced_goes_elsewhere(launched: list[torch.Size]) -> None:
    """Of any number of samples."""

    class Query(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = FoldedHeads(32, 2, 16)

        def forward(self, source: Tensor) -> Tensor:
            return self.heads.query(source)

    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Query(), (torch.randn(3, 32),), dynamic_shapes={"source": {0: rows}})
    assert program.module()(torch.randn(6, 32)).shape == (6, 2, 32)
    assert not launched
