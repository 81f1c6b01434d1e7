"""Heads for comparison, against their equations."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from laser.model.baselines.encoder_model import EncoderModel
from laser.model.baselines.newest_mean import NewestMean
from laser.model.heads import DCNv2, FinalMLP, TokenMixerLarge
from laser.model.laser import Laser

SMALL = {"width": 32, "query_width": 8, "mixer_tokens": 4, "mixer_width": 16, "mixer_multiple": 2}
HEADS = ["rankmixer", "tokenmixer_large", "dcnv2", "final_mlp"]


def scattered(module):
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return module


def rms_norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def test_tokenmixer_large_token_by_token():
    torch.manual_seed(0)
    head = scattered(TokenMixerLarge(2, 4, num_layers=2, multiple=3))
    x = torch.randn(5, 2, 4)
    expected = x
    for block in head.blocks:
        # Mixed token h holds the h-th half of every token.
        mixed = [torch.cat([expected[:, t, 2 * h : 2 * h + 2] for t in range(2)], -1) for h in range(2)]
        for h, m in enumerate(mixed):
            n, f = rms_norm(m, block.norm_mixed.weight), block.mixed
            mixed[h] = m + (silu(n @ f.gate_MDF[h]) * (n @ f.up_MDF[h])) @ f.down_MFD[h]
        back = [torch.cat([mixed[h][:, 2 * t : 2 * t + 2] for h in range(2)], -1) for t in range(2)]
        rows = []
        for t, r in enumerate(back):
            n, f = rms_norm(r, block.norm_own.weight), block.own
            rows.append(expected[:, t] + (silu(n @ f.gate_MDF[t]) * (n @ f.up_MDF[t])) @ f.down_MFD[t])
        expected = torch.stack(rows, 1)
    torch.testing.assert_close(head(x, 0, 5)[0], expected.mean(1), rtol=1e-4, atol=1e-5)


def test_a_new_tokenmixer_block_is_almost_the_identity():
    torch.manual_seed(0)
    x = torch.randn(5, 4, 16)
    (block,) = TokenMixerLarge(4, 16, num_layers=1, multiple=4).blocks
    assert (block(x) - x).abs().max() < 0.05


def test_dcnv2_by_hand():
    torch.manual_seed(0)
    head = scattered(DCNv2(2, 3, num_layers=2, multiple=2))
    x = torch.randn(5, 2, 3)
    first = crossed = deep = x.reshape(5, 6)
    for layer in head.cross:
        crossed = first * (crossed @ layer.weight.T + layer.bias) + crossed
    for layer in (head.deep[0], head.deep[2]):
        deep = (deep @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(head(x, 0, 5)[0], torch.cat([crossed, deep], 1))


def test_final_mlp_by_hand():
    torch.manual_seed(0)
    head = scattered(FinalMLP(2, 4, num_layers=1, multiple=2, bilinear_heads=2))
    x = torch.randn(5, 2, 4)
    outs = []
    for stream, gate, context in zip(head.streams, head.gates, head.context_2D):
        hidden = (gate[0].weight @ context + gate[0].bias).clamp(min=0)
        gates = 2 / (1 + (-(gate[2].weight @ hidden + gate[2].bias)).exp())
        outs.append(((x.reshape(5, 8) * gates) @ stream[0].weight.T + stream[0].bias).clamp(min=0))
    terms = [
        [a[4 * c : 4 * c + 4] @ head.bilinear_COO[c] @ b[4 * c : 4 * c + 4] for c in range(2)] for a, b in zip(*outs)
    ]
    terms = torch.stack([torch.stack(row) for row in terms])
    torch.testing.assert_close(head(x, 0, 5)[0], torch.cat([*outs, terms], 1))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model", ["laser", "encoder"])
def test_every_head_under_every_model(schema, batch, make_batch, model, head):
    torch.manual_seed(0)
    if model == "laser":
        network = Laser(schema, head=head, token_dropout=0.1, **SMALL)
    else:
        options = {name: value for name, value in SMALL.items() if name != "query_width"}
        network = EncoderModel(schema, lambda width, item: NewestMean(width, item), head=head, **options)
    network(batch).logit_B.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    network.zero_grad()
    network(make_batch(schema, [0, 3], [])).logit_B.sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    with torch.autocast("cpu", torch.bfloat16):
        assert network.eval()(batch).logit_B.dtype == torch.float32
    weights = sum(p.numel() for n, p in network.mixer.named_parameters() if n.endswith("weight") and p.dim() == 2)
    weights += sum(p.numel() for n, p in network.mixer.named_parameters() if p.dim() == 3)
    assert network.costs(20).parts["mixer"] == weights + network.logit.in_features


def test_rankmixer_alone_has_experts(schema):
    with pytest.raises(ValueError, match="experts is 2, which is for head rankmixer, and head is dcnv2"):
        Laser(schema, head="dcnv2", experts=2, **SMALL)


@pytest.mark.parametrize("head", ["rankmixer", "tokenmixer_large"])
def test_tokens_must_divide_the_width(schema, head):
    with pytest.raises(ValueError, match="mixer_width 16 is not a multiple of mixer_tokens 3"):
        Laser(schema, head=head, **{**SMALL, "mixer_tokens": 3})
