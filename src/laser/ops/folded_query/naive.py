"""Queries of folded heads in plain PyTorch: the specification.

Legend of shape suffixes: B samples; D width; H heads; Q query width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def folded_query(source_BD: Tensor, query_HDQ: Tensor, key_HDQ: Tensor, scale: float) -> Tensor:
    """Per head scale (source W_Q) W_K^T, [B, H, D]."""
    query_BHQ = torch.einsum("bd,hdq->bhq", source_BD, query_HDQ)
    return torch.einsum("bhq,hdq->bhd", query_BHQ * scale, key_HDQ)
