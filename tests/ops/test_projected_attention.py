"""Projected keys and values against the absorbed form: the same function, with the same gradients of all parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from laser.ops.segmented_attention import segmented_target_attention
from laser.ops.segmented_attention.projected import projected_target_attention

D, H, Q = 12, 3, 5
LENGTHS = [7, 0, 12, 1, 30, 4, 5]
SAMPLES = [4, 0, 2, 2, 3, 1, 4, 0, 4, 5, 4, 4, 2]
NAMES = ["z", "d_x", "d_query", "d_bias", "d_key_weight", "d_value_weight"]


def case(lengths: list[int], samples: list[int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(sum(lengths), D), (len(samples), H, Q), (H,), (D, H, Q), (D, H, D // H)]
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def absorbed(leaves: list[Tensor], off: Tensor, history: Tensor, width: int) -> tuple[Tensor, Tensor]:
    x, query, bias, key_weight, value_weight = leaves
    query_BHD = torch.einsum("bhq,dhq->bhd", query, key_weight)
    pooled, seg_off = segmented_target_attention(x, off, query_BHD, bias, history, width)
    return torch.einsum("ghd,dhv->ghv", pooled, value_weight).flatten(1), seg_off


def projected(leaves: list[Tensor], off: Tensor, history: Tensor, width: int) -> tuple[Tensor, Tensor]:
    x, query, bias, key_weight, value_weight = leaves
    key, value = (torch.einsum("nd,dhq->nhq", x, weight) for weight in (key_weight, value_weight))
    return projected_target_attention(key, value, off, query, bias, history, width)


@pytest.mark.parametrize("width", [1, 5, 10, 100])
@pytest.mark.parametrize(("lengths", "samples"), [(LENGTHS, SAMPLES), ([3], []), ([0, 0], [1]), ([], [])], ids=str)
def test_equals_the_absorbed_form(lengths, samples, width, device):
    leaves = case(lengths, samples, torch.float64, device)
    off = torch.tensor([0, *lengths], device=device).cumsum(0)
    history = torch.tensor(samples, dtype=torch.int64, device=device)
    (expected, expected_off), (z, seg_off) = (form(leaves, off, history, width) for form in (absorbed, projected))
    assert seg_off.tolist() == expected_off.tolist()
    upstream = torch.randn_like(expected)
    found = [[out, *torch.autograd.grad(out, leaves, upstream)] for out in (expected, z)]
    for name, ours, theirs in zip(NAMES, *found[::-1], strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_half_precision_keeps_float32_inside(device):
    """The result is the float32 one of the same rounded inputs, rounded once; autocast changes nothing."""
    leaves = [leaf.detach().bfloat16() for leaf in case(LENGTHS, SAMPLES, torch.float32, device)]
    off, history = torch.tensor([0, *LENGTHS], device=device).cumsum(0), torch.tensor(SAMPLES, device=device)
    key, value = leaves[0][:, :, None].expand(-1, -1, Q)[:, :H], leaves[0].unflatten(1, (H, -1))
    wide, _ = projected_target_attention(
        *(t.float() for t in (key, value)), off, *(t.float() for t in leaves[1:3]), history, 5
    )
    with torch.autocast(device.type, torch.bfloat16):
        half, _ = projected_target_attention(key, value, off, *leaves[1:3], history, 5)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, wide.bfloat16())


def test_mistakes_are_named():
    key, value, query, bias = torch.zeros(4, 2, 3), torch.zeros(4, 2, 5), torch.zeros(1, 2, 3), torch.zeros(2)
    off, history = torch.tensor([0, 4]), torch.tensor([0])
    with pytest.raises(ValueError, match=r"query_BHQ \[1, 2, 4\]"):
        projected_target_attention(key, value, off, torch.zeros(1, 2, 4), bias, history, 2)
    with pytest.raises(ValueError, match="width is 0"):
        projected_target_attention(key, value, off, query, bias, history, 0)
