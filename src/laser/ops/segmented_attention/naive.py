"""Segmented target attention in plain PyTorch: the specification that every faster path must match.

Any device, float64 able, differentiable. Written to be read; it materialises [E, H, D].

Legend of shape suffixes: B samples; U histories; T events, packed; E events, once per sample that sees them;
G segments, packed; H heads; D event width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segmented_target_attention(
    x_TD: Tensor,
    off_U1: Tensor,
    query_BHD: Tensor,
    bias_H: Tensor,
    history_of_B: Tensor,
    width: int,
    *,
    return_gates: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gate every event by the target, then sum each segment; see the package for shapes and dtypes."""
    length_B = off_U1.diff()[history_of_B]
    segments_B = (length_B + width - 1) // width
    seg_off_B1 = torch.cat([length_B.new_zeros(1), segments_B.cumsum(0)])
    event_off_B1 = torch.cat([length_B.new_zeros(1), length_B.cumsum(0)])

    sample_E = torch.repeat_interleave(torch.arange(len(length_B), device=x_TD.device), length_B)
    position_E = torch.arange(len(sample_E), device=x_TD.device) - event_off_B1[sample_E]
    from_newest_E = length_B[sample_E] - 1 - position_E
    segment_E = seg_off_B1[sample_E + 1] - 1 - from_newest_E // width

    # Half precision is widened once: gates, scores and sums are at least float32, and only the result is rounded.
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    x_ED = x_TD[off_U1[history_of_B][sample_E] + position_E].to(wide)
    score_EH = (x_ED[:, None, :] * query_BHD.to(wide)[sample_E]).sum(-1)
    gate_EH = torch.sigmoid(score_EH + bias_H.to(wide))
    pooled_GHD = x_ED.new_zeros(int(seg_off_B1[-1]), *query_BHD.shape[1:])
    pooled_GHD = pooled_GHD.index_add(0, segment_E, gate_EH[:, :, None] * x_ED[:, None, :]).to(x_TD.dtype)
    return (pooled_GHD, seg_off_B1, gate_EH.detach(), event_off_B1) if return_gates else (pooled_GHD, seg_off_B1)
