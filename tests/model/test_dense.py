"""The norm of a residual sum in models: PyTorch's on the CPU, kernels on a GPU, the same parameters in both."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import laser.ops.residual_norm as package
from laser.model.baselines.transact import Layer
from laser.model.dense import ResidualNorm
from laser.model.laser import Laser

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


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """As on a GPU: the norms go to Triton, interpreted; the shapes that did."""
    taken: list[torch.Size] = []

    def apply(*args):
        taken.append(args[0].shape)
        return fused(*args)

    fused = package.FusedResidualNorm.apply
    monkeypatch.setattr(package, "use_triton", lambda tensor: True)
    monkeypatch.setattr(package.FusedResidualNorm, "apply", apply)
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
    monkeypatch.setattr(package, "use_triton", lambda tensor: False)
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
