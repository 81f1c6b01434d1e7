"""Transformer: the target is the last token of the sequence, and its row of the last layer is read.

Pre-norm layers with softmax attention among all tokens. Order comes from the recency embeddings that every model's
events carry. With one layer only the target's row is computed, which is the same function; ``macs`` in the paper's
form counts every row, which reproduces the published cost (feed-forward network of once the width; our inference).

Legend of shape suffixes: B samples; L padded history; S = L + 1 tokens; D width; H heads; Q width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser.model.baselines.attention import TargetAttention
from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form
from laser.model.dense import FeedForward
from laser.model.padding import pad


class Layer(nn.Module):
    """x' = x + MHA(LN(x)); x'' = x' + FFN(LN(x')), for every row or for the last one."""

    def __init__(self, width: int, num_heads: int, ffn_multiple: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = TargetAttention(width, num_heads)
        self.ffn = FeedForward(width, ffn_multiple)

    def forward(self, x_BSD: Tensor, live_BS: Tensor) -> Tensor:
        """Every row."""
        normed_BSD, heads = self.norm_attention(x_BSD), self.attention.heads
        query_BHSQ, key_BHSQ, value_BHSQ = (
            torch.einsum("bsd,hdq->bhsq", normed_BSD, weight)
            for weight in (heads.query_HDQ, heads.key_HDQ, heads.value_HDV)
        )
        mixed_BHSQ = nn.functional.scaled_dot_product_attention(
            query_BHSQ, key_BHSQ, value_BHSQ, attn_mask=live_BS[:, None, None]
        )
        x_BSD = x_BSD + self.attention.out(mixed_BHSQ.transpose(1, 2).flatten(2))
        return x_BSD + self.ffn(self.norm_ffn(x_BSD))

    def last_row(self, x_BSD: Tensor, live_BS: Tensor) -> Tensor:
        """The last row of ``forward``, [B, D]."""
        normed_BSD = self.norm_attention(x_BSD)
        last_BD = x_BSD[:, -1] + self.attention(normed_BSD[:, -1], normed_BSD, live_BS)
        return last_BD + self.ffn(self.norm_ffn(last_BD))


class Transformer(Encoder):
    """A stack of layers over history and target.

    Args:
        width: D.
        item_width: not used.
        num_layers: at least 1.
        num_heads: of the attention.
        ffn_multiple: hidden width of the feed-forward networks in units of D; 1 is the published cost, 4 the custom.
        newest: consider only so many events; null is all of them.
    """

    def __init__(
        self,
        width: int,
        item_width: int,
        *,
        num_layers: int = 1,
        num_heads: int = 2,
        ffn_multiple: int = 1,
        newest: int | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers of the Transformer is {num_layers}; it needs at least 1")
        self.width, self.ffn_multiple, self.newest = width, ffn_multiple, newest
        self.layers = nn.ModuleList(Layer(width, num_heads, ffn_multiple) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: Inputs) -> Encoded:
        """One vector, the target's."""
        padded = pad(inputs.batch, self.newest)
        x_BLD = padded.rows(inputs.x_TD)
        x_BSD = torch.cat([x_BLD, inputs.target_BD.to(x_BLD.dtype)[:, None]], dim=1)
        live_BS = nn.functional.pad(padded.live_BL, (0, 1), value=True)
        *inner, last = self.layers
        for layer in inner:
            x_BSD = layer(x_BSD, live_BS)
        return Encoded([self.norm(last.last_row(x_BSD, live_BS))])  # type: ignore[operator]

    def macs(self, length: int, form: Form = "folded") -> int:
        """Products of all layers; in the paper's form with every row of the last one."""
        rows = (length if self.newest is None else min(length, self.newest)) + 1
        d2, layers = self.width**2, len(self.layers)
        full = rows * (4 + 2 * self.ffn_multiple) * d2 + 2 * rows**2 * self.width
        if form == "paper":
            return layers * full
        last: Layer = self.layers[-1]  # type: ignore[assignment]
        return (layers - 1) * full + last.attention.macs(rows) + 2 * self.ffn_multiple * d2
