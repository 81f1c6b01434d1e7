"""Keys and values once per history: the model's segmented attention, with the same gradients of all its parameters."""

from __future__ import annotations

import pytest
import torch

from laser.model import sta as sta_module
from laser.model.projected import projected_segments, regime_of
from laser.model.sta import SegmentedTargetAttention

LENGTHS = [30, 0, 9, 10, 11]
SAMPLES = [0, 4, 0, 0, 1, 2, 4, 3, 0, 0]


def inputs(dtype: torch.dtype):
    torch.manual_seed(0)
    off_U1 = torch.tensor([0, *LENGTHS]).cumsum(0)
    x_TD = torch.randn(int(off_U1[-1]), 16, dtype=dtype, requires_grad=True)
    target_BD = torch.randn(len(SAMPLES), 16, dtype=dtype, requires_grad=True)
    sta = SegmentedTargetAttention(16, query_width=4, ffn_multiple=0, layer_norm=False, regime="absorbed").to(dtype)
    return sta, x_TD, off_U1, target_BD, torch.tensor(SAMPLES)


def both(sta, x_TD, off_U1, target_BD, history_of_B):
    folded_GD, folded_off, _ = sta(x_TD, off_U1, target_BD, history_of_B)
    z_GD, seg_off = projected_segments(sta.heads, sta.bias_H, x_TD, off_U1, target_BD, history_of_B, sta.segment_width)
    assert torch.equal(seg_off, folded_off)
    return folded_GD, z_GD


def test_equals_the_folded_form_with_gradients():
    sta, x_TD, *rest = inputs(torch.float64)
    folded_GD, z_GD = both(sta, x_TD, *rest)
    torch.testing.assert_close(z_GD, folded_GD, rtol=1e-10, atol=1e-10)
    wanted = {"x": x_TD, "target": rest[1], **dict(sta.named_parameters())}
    upstream = torch.randn_like(z_GD)
    expected, found = (torch.autograd.grad(out, list(wanted.values()), upstream) for out in (folded_GD, z_GD))
    for name, ours, theirs in zip(wanted, found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_agrees_under_autocast():
    sta, *rest = inputs(torch.float32)
    with torch.no_grad():
        exact, _ = both(sta, *rest)
        with torch.autocast("cpu", torch.bfloat16):
            folded_GD, z_GD = both(sta, *rest)
    assert z_GD.dtype == torch.bfloat16
    errors = [float((half.float() - exact).norm() / exact.norm()) for half in (folded_GD, z_GD)]
    assert errors[1] < 2 * errors[0] + 2**-8


@pytest.mark.parametrize(("candidates", "expected"), [(1, "absorbed"), (50, "projected")])
def test_the_regime_follows_the_candidates_of_a_history(candidates, expected):
    sta = SegmentedTargetAttention(128)
    off_U1, history_of_B = torch.tensor([0, 1000, 2000]), torch.arange(2).repeat(candidates)
    x_TD = torch.zeros(2000, 128)
    assert regime_of(sta.heads, x_TD, off_U1, history_of_B, 10) == expected
    assert regime_of(sta.heads, x_TD, off_U1, history_of_B, 10, override="absorbed") == "absorbed"


FORMS = ("absorbed", "projected")


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_either_form_gives_the_same_segments_and_gradients(pooling):
    _, x_TD, off_U1, target_BD, history_of_B = inputs(torch.float64)
    found = {}
    for form in FORMS:
        torch.manual_seed(1)
        sta = SegmentedTargetAttention(16, query_width=4, pooling=pooling, regime=form).double()
        segment_GD, seg_off_B1, gates = sta(x_TD, off_U1, target_BD, history_of_B)
        assert gates is None
        weight_GD = torch.randn(segment_GD.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        gradients = torch.autograd.grad((segment_GD * weight_GD).sum(), [x_TD, target_BD, *sta.parameters()])
        found[form] = [segment_GD, seg_off_B1, *gradients]
    for ours, theirs in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("candidates", "options", "asked", "projections"),
    [
        (1, {}, {}, 0),
        (16, {}, {}, 1),
        (16, {"regime": "absorbed"}, {}, 0),
        (1, {"regime": "projected"}, {}, 1),
        (16, {"gate": "softmax"}, {}, 0),
        (16, {"rank_bias": True}, {}, 0),
        (16, {"regime": "projected"}, {"return_gates": True}, 0),
    ],
    ids=str,
)
def test_training_takes_the_cheaper_form_unless_it_is_told(candidates, options, asked, projections, monkeypatch):
    calls = []
    real = sta_module.projected_segments
    monkeypatch.setattr(sta_module, "projected_segments", lambda *a, **o: calls.append(1) or real(*a, **o))
    torch.manual_seed(0)
    off_U1, history_of_B = torch.tensor([0, 200, 400]), torch.arange(2).repeat(candidates)
    sta = SegmentedTargetAttention(128, **options)
    _, _, gates = sta(torch.randn(400, 128), off_U1, torch.randn(2 * candidates, 128), history_of_B, **asked)
    assert len(calls) == projections
    assert (gates is not None) == bool(asked)
