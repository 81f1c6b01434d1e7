"""Global stacked target attention: the target attends to the segments, layer upon layer (arXiv 2602.11562).

With S the segments, which no layer changes, and u^0 = t::

    o   = MHA( query u^{l-1}, keys S W_K, values S W_V ) W_O         softmax over the sample's segments
    u'  = LN( u^{l-1} + o );   u^l = LN( u' + FFN(u') )

Without history o = 0, so that u is a function of the target alone. Where norms and residuals sit is our choice.

Legend of shape suffixes: B samples; G segments, packed per sample; H heads; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser.model.dense import FeedForward, ResidualNorm, linear
from laser.model.folded import FoldedHeads
from laser.ops.attention_tail import attention_tail
from laser.ops.target_attention import joined_attention


class GlobalLayer(nn.Module):
    """One layer: attention, then a feed-forward network on the query."""

    def __init__(self, width: int, num_heads: int, ffn_multiple: int) -> None:
        super().__init__()
        self.heads = FoldedHeads(width, num_heads, width // num_heads)
        # No bias: without history the attention adds exactly nothing.
        self.out = linear(width, width, bias=False)
        self.norm_attention = ResidualNorm(width)
        self.ffn = FeedForward(width, ffn_multiple)
        self.norm_ffn = ResidualNorm(width)

    def forward(self, user_BD: Tensor, segment_GD: Tensor, seg_off_B1: Tensor) -> tuple[Tensor, Tensor]:
        """u^{l-1} -> u^l, [B, D], and the segments for later uses."""
        with torch.autocast(user_BD.device.type, enabled=False):
            query_BHD = self.heads.query(user_BD.to(self.heads.query_HDQ.dtype))
            pooled_BHD, segment_GD = joined_attention(query_BHD, segment_GD, seg_off_B1, in_place=True)
        return self.after_attention(user_BD, pooled_BHD), segment_GD

    def after_attention(self, user_BD: Tensor, pooled_BHD: Tensor) -> Tensor:
        """What follows the weighted mean of the segments: u^{l-1} and it -> u^l."""
        inner, outer = self.norm_attention, self.norm_ffn
        weights = (self.heads.value_HDV, self.out.weight, inner.weight, inner.bias, *self.ffn.weights)
        return attention_tail(user_BD, pooled_BHD, *weights, outer.weight, outer.bias, inner.eps)


class GlobalStackedTargetAttention(nn.Module):
    """M layers of target attention over segments.

    Args:
        width: D.
        num_layers: M, at least 1.
        num_heads: H; keys and values are D / H wide per head (inferred from the published costs).
        ffn_multiple: hidden width of the feed-forward network in units of D.
    """

    def __init__(self, width: int, *, num_layers: int = 2, num_heads: int = 2, ffn_multiple: int = 4) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; the target has to attend to the segments at least once")
        self.ffn_multiple = ffn_multiple
        self.layers = nn.ModuleList(GlobalLayer(width, num_heads, ffn_multiple) for _ in range(num_layers))

    def forward(self, target_BD: Tensor, segment_GD: Tensor, seg_off_B1: Tensor) -> tuple[Tensor, Tensor]:
        """u^M from the targets and their segments, [B, D], and the segments for later uses.

        The layers add to the gradient of those uses in place: nothing else may hold it (``joined_attention``).
        """
        user_BD = target_BD
        for layer in self.layers:
            user_BD, segment_GD = layer(user_BD, segment_GD, seg_off_B1)
        return user_BD, segment_GD
