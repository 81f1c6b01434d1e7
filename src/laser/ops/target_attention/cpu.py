"""Target attention as batched matrix products over tiles of each sample's segments: the path without Triton.

A sample is cut into tiles of 16 segments, anchored at its newest as events are in segmented attention, so that one
long sample costs the short ones nothing.

Legend of shape suffixes: B samples; G segments, packed; N tiles; C tiles of one chunk; W segments a tile; H heads;
D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laser.ops.chunks import Chunk, chunks
from laser.ops.segments import SegmentLayout, segment_layout

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
    parts, num_tiles = layout.parts, layout.size.num_segments
    sample_N = parts.history_of_B.repeat_interleave(parts.seg_off_B1.diff(), output_size=num_tiles)
    top_NH, sum_NH = query_BHD.new_empty(2, num_tiles, H)
    pooled_NHD = query_BHD.new_empty(num_tiles, H, D)
    for chunk in chunks(layout, D * wide.itemsize):
        seg_CWD = gather(seg_GD, chunk, wide)
        score_CWH = torch.bmm(seg_CWD, query_BHD[chunk.sample_C].transpose(1, 2))
        score_CWH.masked_fill_(~chunk.live_CW[:, :, None], -torch.inf)
        top_CH = score_CWH.amax(1)
        weight_CWH = score_CWH.sub_(top_CH[:, None, :]).exp_()
        top_NH[chunk.segments] = top_CH
        sum_NH[chunk.segments] = weight_CWH.sum(1)
        pooled_NHD[chunk.segments] = torch.bmm(weight_CWH.transpose(1, 2), seg_CWD)

    # Tiles of one sample meet at the largest of their scores.
    top_BH = top_NH.new_full((B, H), -torch.inf)
    top_BH.scatter_reduce_(0, sample_N[:, None].expand(-1, H), top_NH, "amax").clamp_(min=torch.finfo(wide).min)
    scale_NH = (top_NH - top_BH[sample_N]).exp_()
    # A sample without segments divides 0 by 1.
    sum_BH = top_BH.new_zeros(B, H).index_add_(0, sample_N, sum_NH * scale_NH)
    sum_BH.masked_fill_((seg_off_B1.diff() == 0)[:, None], 1.0)
    pooled_BHD = query_BHD.new_zeros(B, H, D).index_add_(0, sample_N, pooled_NHD * scale_NH[:, :, None])
    return pooled_BHD / sum_BH[:, :, None], top_BH + sum_BH.log()


def backward(
    d_pooled_BHD: Tensor, query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor, pooled_BHD: Tensor, lse_BH: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of query [B, H, D] and segments [G, D], each in its dtype."""
    wide = pooled_BHD.dtype
    D = seg_GD.shape[1]
    query_wide_BHD = query_BHD.to(wide)
    delta_BH = (d_pooled_BHD * pooled_BHD).sum(-1)
    d_seg_GD = torch.zeros_like(seg_GD)
    d_query_BHD = torch.zeros_like(query_BHD, dtype=wide)
    residual_BH = torch.zeros_like(lse_BH)
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
        residual_BH.index_add_(0, sample_C, d_score_CWH.sum(1))
    # The scores' gradients sum to zero; what is left is the rounding of delta, which entered all of them alike.
    d_query_BHD -= residual_BH[:, :, None] * pooled_BHD
    return d_query_BHD.to(query_BHD.dtype), d_seg_GD
