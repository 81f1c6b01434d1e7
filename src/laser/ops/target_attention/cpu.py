"""Target attention as batched matrix products over tiles of each sample's segments: the path without Triton.

A sample is cut into tiles of 16 segments, anchored at its newest as events are in segmented attention, so that one
long sample costs the short ones nothing.

Legend of shape suffixes: B samples; G segments, packed; C tiles of one chunk; W segments a tile; H heads; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laser.ops.segments import Chunk, SegmentLayout, chunks, segment_layout

TILE = 16


def layout_of(seg_off_B1: Tensor) -> SegmentLayout:
    """Tiles of every sample."""
    return segment_layout(seg_off_B1, torch.arange(len(seg_off_B1) - 1, device=seg_off_B1.device), TILE)


def gather(seg_GD: Tensor, chunk: Chunk, wide: torch.dtype) -> Tensor:
    """The segments of a chunk, [C, W, D]."""
    return seg_GD.index_select(0, chunk.row_CW.flatten()).to(wide).view(*chunk.row_CW.shape, seg_GD.shape[1])


def forward(query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean [B, H, D] and logarithm of the sum of exponentials [B, H]; both at least float32."""
    wide = torch.promote_types(seg_GD.dtype, torch.float32)
    B, H, D = query_BHD.shape
    query_BHD = query_BHD.to(wide)
    layout = layout_of(seg_off_B1)
    score_GH = seg_GD.new_empty(len(seg_GD), H, dtype=wide)
    for chunk in chunks(layout, D * wide.itemsize):
        score_CWH = torch.bmm(gather(seg_GD, chunk, wide), query_BHD[chunk.sample_C].transpose(1, 2))
        score_GH[chunk.gates] = score_CWH[chunk.live_CW]

    sample_G = layout.history_of_B.repeat_interleave(seg_off_B1.diff(), output_size=len(seg_GD))
    index_GH = sample_G[:, None].expand(-1, H)
    max_BH = score_GH.new_full((B, H), -torch.inf).scatter_reduce_(0, index_GH, score_GH, "amax")
    max_BH = max_BH.masked_fill_(max_BH.isneginf(), 0.0)
    weight_GH = (score_GH - max_BH[sample_G]).exp_()
    sum_BH = weight_GH.new_zeros(B, H).index_add_(0, sample_G, weight_GH)
    weight_GH /= sum_BH[sample_G]

    pooled_BHD = query_BHD.new_zeros(B, H, D)
    for chunk in chunks(layout, D * wide.itemsize):
        weight_CWH = weight_GH.new_zeros(*chunk.row_CW.shape, H)
        weight_CWH[chunk.live_CW] = weight_GH[chunk.gates]
        pooled_CHD = torch.bmm(weight_CWH.transpose(1, 2), gather(seg_GD, chunk, wide))
        pooled_BHD.index_add_(0, chunk.sample_C, pooled_CHD)
    return pooled_BHD, max_BH + sum_BH.clamp(min=torch.finfo(wide).tiny).log()


def backward(
    d_pooled_BHD: Tensor, query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor, pooled_BHD: Tensor, lse_BH: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of query [B, H, D] and segments [G, D], each in its dtype."""
    wide = pooled_BHD.dtype
    D = seg_GD.shape[1]
    query_wide_BHD = query_BHD.to(wide)
    delta_BH = (d_pooled_BHD * pooled_BHD).sum(-1)
    d_seg_GD = torch.empty_like(seg_GD)
    d_query_BHD = torch.zeros_like(query_BHD, dtype=wide)
    for chunk in chunks(layout_of(seg_off_B1), D * wide.itemsize):
        seg_CWD, sample_C = gather(seg_GD, chunk, wide), chunk.sample_C
        query_CHD, d_pooled_CHD = query_wide_BHD[sample_C], d_pooled_BHD[sample_C]
        score_CWH = torch.bmm(seg_CWD, query_CHD.transpose(1, 2))
        weight_CWH = (score_CWH - lse_BH[sample_C][:, None, :]).exp_().mul_(chunk.live_CW[:, :, None])
        d_weight_CWH = torch.bmm(seg_CWD, d_pooled_CHD.transpose(1, 2))
        d_score_CWH = (d_weight_CWH - delta_BH[sample_C][:, None, :]).mul_(weight_CWH)
        # weight . d_pooled + d_score . query, as one product
        d_seg_CWD = torch.bmm(torch.cat([weight_CWH, d_score_CWH], 2), torch.cat([d_pooled_CHD, query_CHD], 1))
        d_seg_GD[chunk.gates] = d_seg_CWD[chunk.live_CW].to(seg_GD.dtype)
        d_query_BHD.index_add_(0, sample_C, torch.bmm(d_score_CWH.transpose(1, 2), seg_CWD))
    return d_query_BHD.to(query_BHD.dtype), d_seg_GD
