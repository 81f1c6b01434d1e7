"""Maximum and newest segments by tiles: the path without Triton.

Legend of shape suffixes: B samples; G segments, packed; C tiles of one chunk; W segments a tile; R newest segments;
D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laser.ops.chunks import chunks
from laser.ops.segments import segment_layout

TILE = 16


def newest_rows(seg_off_B1: Tensor, newest: int) -> tuple[Tensor, Tensor]:
    """Row of each sample's newest segments [B, R], newest first, and which of them exist."""
    row_BR = seg_off_B1[1:, None] - 1 - torch.arange(newest, device=seg_off_B1.device)
    return row_BR, row_BR >= seg_off_B1[:-1, None]


def forward(seg_GD: Tensor, seg_off_B1: Tensor, newest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum [B, D], newest segments [B, R, D], and the row of each maximum [B, D] (G where there is none)."""
    B, (G, D) = len(seg_off_B1) - 1, seg_GD.shape
    samples_B = torch.arange(B, device=seg_GD.device)
    max_BD = seg_GD.new_full((B, D), -torch.inf)
    row_BD = seg_off_B1.new_full((B, D), G)
    for chunk in chunks(segment_layout(seg_off_B1, samples_B, TILE), D * seg_GD.itemsize):
        # Dead rows repeat the sample's oldest segment, which changes neither a maximum nor where it is first found.
        seg_CWD = seg_GD.index_select(0, chunk.row_CW.flatten()).view(*chunk.row_CW.shape, D)
        max_CD, within_CD = seg_CWD.max(1)
        row_CD = chunk.row_CW.gather(1, within_CD)
        index_CD = chunk.sample_C[:, None].expand(-1, D)
        before_BD = max_BD.clone()
        max_BD.scatter_reduce_(0, index_CD, max_CD, "amax")
        row_BD = row_BD.masked_fill_(max_BD > before_BD, G)
        row_CD = row_CD.masked_fill_(max_CD < max_BD[chunk.sample_C], G)
        row_BD.scatter_reduce_(0, index_CD, row_CD, "amin")
    row_BR, live_BR = newest_rows(seg_off_B1, newest)
    newest_BRD = seg_GD.new_zeros(B, newest, D)
    newest_BRD[live_BR] = seg_GD[row_BR[live_BR]]
    return max_BD.masked_fill_((row_BD == G), 0.0), newest_BRD, row_BD


def backward(d_max_BD: Tensor, d_newest_BRD: Tensor, row_BD: Tensor, seg_off_B1: Tensor, num_segments: int) -> Tensor:
    """Gradient of the segments [G, D]. Every row belongs to one sample, so nothing is written twice."""
    d_seg_GD = d_max_BD.new_zeros(num_segments + 1, d_max_BD.shape[1])
    d_seg_GD.scatter_(0, row_BD, d_max_BD)
    row_BR, live_BR = newest_rows(seg_off_B1, d_newest_BRD.shape[1])
    d_seg_GD[row_BR[live_BR]] += d_newest_BRD[live_BR]
    return d_seg_GD[:num_segments]
