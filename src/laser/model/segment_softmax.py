"""The paper's ablation of the gate: a softmax over the events of each segment instead of independent sigmoids.

Plain PyTorch; it keeps [E, H, D] for the backward pass, which an ablation may.

Legend of shape suffixes: B samples; U distinct histories; T history events, packed; E events counted once per sample
that sees them; G segments, packed; H heads; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laser.model.recency import owner, rank_from_newest
from laser.ops.segments import segment_layout


def segmented_softmax_attention(
    x_TD: Tensor,
    off_U1: Tensor,
    query_BHD: Tensor,
    history_of_B: Tensor,
    width: int,
    on_host: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Same arguments and layout as ``laser.ops.segmented_attention``, whose gates these weights replace.

    Returns:
        pooled_GHD, seg_off_B1, weight_EH (sums to 1 over each segment), event_off_B1.
    """
    layout = segment_layout(*(on_host or (off_U1, history_of_B)), width, device=x_TD.device)
    num_events, num_segments = layout.size.num_events, layout.size.num_segments
    seg_off_B1, event_off_B1 = layout.parts.seg_off_B1, layout.parts.event_off_B1
    sample_E = owner(event_off_B1, num_events)
    rank_E = rank_from_newest(event_off_B1, sample_E)
    segment_E = seg_off_B1[sample_E + 1] - 1 - rank_E // width
    x_ED = x_TD[off_U1[history_of_B + 1][sample_E] - 1 - rank_E].float()
    score_EH = (x_ED[:, None, :] * query_BHD.float()[sample_E]).sum(-1)

    # Scores may differ by hundreds between segments: each is shifted by its own maximum, as softmax does.
    index_EH = segment_E[:, None].expand_as(score_EH)
    top_GH = score_EH.new_full((num_segments, score_EH.shape[1]), -torch.inf)
    top_GH = top_GH.scatter_reduce(0, index_EH, score_EH.detach(), "amax")
    power_EH = (score_EH - top_GH[segment_E]).exp()
    total_GH = torch.zeros_like(top_GH).index_add(0, segment_E, power_EH)
    weight_EH = power_EH / total_GH[segment_E]
    pooled_GHD = x_ED.new_zeros(num_segments, *query_BHD.shape[1:])
    pooled_GHD = pooled_GHD.index_add(0, segment_E, weight_EH[:, :, None] * x_ED[:, None, :])
    return pooled_GHD.to(x_TD.dtype), seg_off_B1, weight_EH.detach(), event_off_B1
