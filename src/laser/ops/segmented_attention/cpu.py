"""Segmented target attention as batched matrix products over chunks of segments: the path without Triton.

Nothing of size [T, H, D] exists: a chunk of segments is gathered, used and dropped while it is still in the cache.
A history pads only its oldest segment, never to the longest history.

Legend of shape suffixes: B samples; U histories; T events, packed; E events per sample, packed; G segments, packed;
C segments of one chunk; W segment width; H heads; D event width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laser.ops.chunks import chunks
from laser.ops.segments import SegmentLayout, Tiling


def tiling(_dtype: torch.dtype, _H: int, _D: int, _width: int, shared: bool) -> Tiling:
    """Chunks are cut here, so the layout needs no tiles."""
    return Tiling(shared=shared)


def forward(
    x_TD: Tensor, query_BHD: Tensor, bias_H: Tensor, layout: SegmentLayout, *, keep_gates: bool = True
) -> tuple[Tensor, Tensor]:
    """Pooled segments [G, H, D] in the dtype of x, and gates [E, H] in float32 (float64 for float64 input).

    Gates are always kept: ``backward`` reads them.
    """
    assert keep_gates
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    H, D = query_BHD.shape[1:]
    query_BHD, bias_H = query_BHD.to(wide), bias_H.to(wide)
    new = x_TD.new_zeros if layout.size.spare else x_TD.new_empty
    pooled_GHD = new(layout.size.num_segments, H, D)
    gate_EH = x_TD.new_empty(layout.size.num_events, H, dtype=wide)
    for chunk in chunks(layout, D * wide.itemsize):
        x_CWD = x_TD.index_select(0, chunk.row_CW.flatten()).to(wide).view(*chunk.row_CW.shape, D)
        query_CDH = query_BHD[chunk.sample_C].transpose(1, 2)
        gate_CWH = torch.baddbmm(bias_H, x_CWD, query_CDH).sigmoid_().mul_(chunk.live_CW[:, :, None])
        gate_EH[chunk.gates] = gate_CWH[chunk.live_CW]
        pooled_GHD[chunk.segments] = torch.bmm(gate_CWH.transpose(1, 2), x_CWD)
    return pooled_GHD, gate_EH


def backward(
    d_pooled_GHD: Tensor, x_TD: Tensor, query_BHD: Tensor, _bias_H: Tensor, gate_EH: Tensor, layout: SegmentLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [T, D], query [B, H, D] (each in its dtype) and bias [H] (dtype of the gates)."""
    wide = gate_EH.dtype
    H, D = query_BHD.shape[1:]
    query_wide_BHD = query_BHD.to(wide)
    d_x_TD = torch.zeros_like(x_TD, dtype=wide)
    d_query_BHD = torch.zeros_like(query_BHD, dtype=wide)
    d_bias_H = gate_EH.new_zeros(H)
    for chunk in chunks(layout, D * wide.itemsize):
        row = chunk.row_CW.flatten()
        x_CWD = x_TD.index_select(0, row).to(wide).view(*chunk.row_CW.shape, D)
        d_pooled_CHD = d_pooled_GHD[chunk.segments].to(wide)
        gate_CWH = gate_EH.new_zeros(*chunk.row_CW.shape, H)
        gate_CWH[chunk.live_CW] = gate_EH[chunk.gates]
        d_score_CWH = torch.bmm(x_CWD, d_pooled_CHD.transpose(1, 2)).mul_(gate_CWH).mul_(1 - gate_CWH)
        # gate . d_pooled + d_score . query, as one product
        left_CWK = torch.cat([gate_CWH, d_score_CWH], 2)
        right_CKD = torch.cat([d_pooled_CHD, query_wide_BHD[chunk.sample_C]], 1)
        d_x_TD.index_add_(0, row, torch.bmm(left_CWK, right_CKD).flatten(0, 1))
        d_query_BHD.index_add_(0, chunk.sample_C, torch.bmm(d_score_CWH.transpose(1, 2), x_CWD))
        d_bias_H += d_score_CWH.sum((0, 1))
    return d_x_TD.to(x_TD.dtype), d_query_BHD.to(query_BHD.dtype), d_bias_H
