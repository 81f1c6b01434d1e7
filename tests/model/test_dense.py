"""Linear layers and norms of residual sums in models: PyTorch's on the CPU, ours on a GPU, the same parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import laser.ops.linear
import laser.ops.mixed_norm as mixed_package
import laser.ops.residual_norm as package
from laser.model.baselines.transact import Layer
from laser.model.dense import ResidualNorm, linear
from laser.model.half_copies import HalfCopies
from laser.model.laser import Laser
from laser.model.sta import SegmentedTargetAttention

OPTIONS = {
    "width": 32,
    "query_width": 8,
    "recency_ranks": 50,
    "newest_events": 20,
    "mixer_tokens": 8,
    "mixer_width": 32,
    "mixer_multiple": 2,
}


def test_is_a_layer_norm() -> None:
    torch.manual_seed(0)
    ours, plain = ResidualNorm(8), nn.LayerNorm(8)
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    assert list(ours.state_dict()) == list(plain.state_dict())
    x, y = torch.randn(2, 5, 8)
    assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours(x, y), plain(x + y))
    assert ours.double()(x.double(), y.double()).dtype == torch.float64


@pytest.mark.parametrize("widens", [True, False])
def test_a_norm_keeps_half_precision_only_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch, widens: bool) -> None:
    """A norm of CUDA's autocast, which widens, in its place."""
    monkeypatch.setattr(package, "layer_norm", lambda x, *rest: F.layer_norm(x.float(), *rest))
    x, y = torch.randn(2, 5, 8, dtype=torch.bfloat16)
    normed = ResidualNorm(8, widens=widens)(x, y)
    assert normed.dtype == (torch.float32 if widens else torch.bfloat16)
    assert torch.equal(normed, F.layer_norm((x + y).float(), (8,)).to(normed.dtype))


def test_segments_keep_half_precision() -> None:
    norm = SegmentedTargetAttention(8).norm
    assert isinstance(norm, ResidualNorm)
    assert not norm.widens
    assert ResidualNorm(8).widens


def test_is_a_linear_layer() -> None:
    ours, plain, x = linear(8, 4), nn.Linear(8, 4), torch.randn(3, 8)
    plain.load_state_dict(ours.state_dict())
    assert isinstance(ours, nn.Linear)
    assert torch.equal(ours(x), plain(x))
    assert list(linear(8, 4, bias=False).state_dict()) == ["weight"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU")
@pytest.mark.parametrize(
    ("options", "dtype", "tolerance"),
    [
        ({}, torch.float32, 1e-5),
        ({}, torch.bfloat16, 0.03),
        ({"experts": 2}, torch.bfloat16, 0.03),
        ({"head": "tokenmixer_large", "gate_rank_bias": True}, torch.bfloat16, 0.03),
        ({"mixer_tokens": 16}, torch.bfloat16, 0.03),
    ],
    ids=str,
)
def test_linear_layers_as_on_a_gpu(schema, batch, scatter, monkeypatch, options, dtype, tolerance) -> None:
    """Logits and gradients by name; and autocast's copies of parameters are those that it made before, at the least."""
    torch.manual_seed(0)
    model = scatter(Laser(schema, **{**OPTIONS, "embedding_std": 0.5, **options}).train())
    parameters = [p for name, p in model.named_parameters() if ".collections." not in name]

    def results() -> tuple[dict[str, torch.Tensor], set[str]]:
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logit_B = model(batch).logit_B
        logit_B.square().sum().backward()
        found = {"logit": logit_B.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()}
        return found, set(HalfCopies(model, parameters, "cpu", dtype, {"batch": batch}).by_name)

    expected, copied = results()
    monkeypatch.setattr(laser.ops.linear, "use_triton", lambda tensor: True)
    found, copied_now = results()
    assert copied <= copied_now
    assert dtype == torch.float32 or any(name.startswith("fusion.tokens.projections") for name in copied_now)
    for name, value in found.items():
        error = (value - expected[name]).norm()
        assert error <= tolerance * expected[name].norm() + 1e-6, (name, float(error), float(expected[name].norm()))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """As on a GPU: the norms go to Triton, interpreted; the shapes that did."""
    taken: list[torch.Size] = []

    def noted(fused):
        def apply(*args):
            taken.append(args[0].shape)
            return fused(*args)

        return apply

    for module, function in ((package, package.FusedResidualNorm), (mixed_package, mixed_package.FusedMixedNorm)):
        monkeypatch.setattr(module, "use_triton", lambda tensor: True)
        monkeypatch.setattr(function, "apply", noted(function.apply))
    return taken


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU")
@pytest.mark.parametrize(
    ("options", "norms"),
    [
        ({}, 9),
        ({"segment_ffn_multiple": 0}, 8),
        ({"segment_layer_norm": False}, 8),
        ({"experts": 2}, 9),
        ({"head": "tokenmixer_large"}, 5),
    ],
    ids=str,
)
def test_a_model_by_kernels(schema, batch, kernels, monkeypatch, options, norms) -> None:
    """Logits and gradients by name are those without them, and no norm of a sum is left to PyTorch."""
    torch.manual_seed(0)
    model = Laser(schema, **OPTIONS, **options)

    def results() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        logit_B = model(batch).logit_B
        binary_cross_entropy_with_logits(logit_B, batch.label_B, reduction="sum").backward()
        return logit_B.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    logit_B, gradients = results()
    assert len(kernels) == norms
    for module in (package, mixed_package):
        monkeypatch.setattr(module, "use_triton", lambda tensor: False)
    plain_B, plain = results()
    assert len(kernels) == norms
    torch.testing.assert_close(logit_B, plain_B, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, plain[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels do not run on tensors of the CPU where there is a GPU")
def test_transact_by_kernels(kernels) -> None:
    layer = Layer(8, 2, 4)
    layer(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool))
    assert kernels == [(2, 3, 8)] * 2
