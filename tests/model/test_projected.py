"""Keys and values once per history: the model's segmented attention, with the same gradients of all its parameters."""

from __future__ import annotations

import pytest
import torch

from laser.model.projected import projected_segments, regime_of
from laser.model.sta import SegmentedTargetAttention

LENGTHS = [30, 0, 9, 10, 11]
SAMPLES = [0, 4, 0, 0, 1, 2, 4, 3, 0, 0]


def inputs(dtype: torch.dtype):
    torch.manual_seed(0)
    off_U1 = torch.tensor([0, *LENGTHS]).cumsum(0)
    x_TD = torch.randn(int(off_U1[-1]), 16, dtype=dtype, requires_grad=True)
    target_BD = torch.randn(len(SAMPLES), 16, dtype=dtype, requires_grad=True)
    sta = SegmentedTargetAttention(16, query_width=4, ffn_multiple=0, layer_norm=False).to(dtype)
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
