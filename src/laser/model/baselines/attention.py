"""Softmax attention of one query per sample over padded rows, and signatures of random projections.

Legend of shape suffixes: B samples; L rows of each; N rows of any kind; D width; H heads; S signs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser.model.costs import Form
from laser.model.dense import linear
from laser.model.folded import FoldedHeads
from laser.model.padding import masked_softmax


class TargetAttention(nn.Module):
    """Multi-head softmax attention of one query per sample, in the folded form (keys and values are never computed).

    No biases, so that a sample without rows gets exactly zero.

    Args:
        width: D.
        num_heads: H, divides ``width``.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.width, self.num_heads = width, num_heads
        self.heads = FoldedHeads(width, num_heads, width // num_heads)
        self.out = linear(width, width, bias=False)

    def score(self, query_BD: Tensor, x_BLD: Tensor) -> Tensor:
        """Scaled scores [B, H, L] in float32."""
        with torch.autocast(x_BLD.device.type, enabled=False):
            query_BHD = self.heads.query(query_BD.to(self.heads.query_HDQ.dtype))
            return query_BHD @ x_BLD.to(query_BHD.dtype).transpose(1, 2)

    def pool(self, score_BHL: Tensor, x_BLD: Tensor, live_BL: Tensor) -> Tensor:
        """Output [B, D] for given scores."""
        weight_BHL = masked_softmax(score_BHL, live_BL[:, None]).to(x_BLD.dtype)
        return self.out(self.heads.value(weight_BHL @ x_BLD))

    def forward(self, query_BD: Tensor, x_BLD: Tensor, live_BL: Tensor) -> Tensor:
        """Queries [B, D] and rows [B, L, D] -> [B, D]."""
        return self.pool(self.score(query_BD, x_BLD), x_BLD, live_BL)

    def macs(self, rows: int, form: Form = "folded") -> int:
        """For one sample; the paper's form computes the key and the value of every row."""
        projections = 2 * rows + 2 if form == "paper" else 4
        heads = 1 if form == "paper" else self.num_heads
        return projections * self.width**2 + 2 * rows * heads * self.width


class RandomSigns(nn.Module):
    """Signs of fixed random projections (SimHash): two vectors agree in a sign with chance 1 - angle / pi.

    The projections are a buffer, drawn once and saved with the model.

    Args:
        width: of the vectors.
        signs: S.
    """

    projection_SD: Tensor

    def __init__(self, width: int, signs: int) -> None:
        super().__init__()
        self.register_buffer("projection_SD", torch.randn(signs, width))

    @torch.no_grad()
    def forward(self, x_ND: Tensor) -> Tensor:
        """[N, D] -> [N, S] of +1 and -1 in float32, under autocast too: a sign near 0 must not depend on precision."""
        with torch.autocast(x_ND.device.type, enabled=False):
            return (x_ND.float() @ self.projection_SD.float().T >= 0).float() * 2 - 1
