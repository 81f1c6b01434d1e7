"""Softmax attention of each sample's target over its own segments, in plain PyTorch: the specification.

Legend of shape suffixes: B samples; G segments, packed; S segments of one sample; H heads; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_softmax_attention(query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor) -> Tensor:
    """Softmax-weighted mean of each sample's segments; see the package for shapes and dtypes."""
    wide = torch.promote_types(seg_GD.dtype, torch.float32)
    query_BHD, seg_GD, dtype = query_BHD.to(wide), seg_GD.to(wide), seg_GD.dtype
    # Zeros that depend on both inputs, so that an empty batch still has (zero) gradients.
    pooled = [query_BHD.sum(0) * 0 + seg_GD.sum(0) * 0]
    for query_HD, seg_SD in zip(query_BHD, seg_GD.split(seg_off_B1.diff().tolist()), strict=True):
        score_HS = (query_HD[:, None, :] * seg_SD).sum(-1)
        pooled.append((torch.softmax(score_HS, -1)[:, :, None] * seg_SD).sum(1))
    return torch.stack(pooled)[1:].to(dtype)
