"""TransAct: a Transformer encoder over the newest events, each fused with the target (arXiv 2306.00248).

    x_i = W [event_i; target];   post-norm layers among all of them;   out = the newest K rows, and the maximum of all

The random time window that hides very new actions in training is not there: it answers a wish of that product (varied
feeds), not of prediction. Order comes from the recency embeddings that every model's events carry.

Legend of shape suffixes: B samples; L padded history; D width; H heads; Q width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form
from laser.model.dense import FeedForward, ResidualNorm, linear
from laser.model.padding import masked_softmax, pad


class Layer(nn.Module):
    """x' = LN(x + MHA(x)); x'' = LN(x' + FFN(x'))."""

    def __init__(self, width: int, num_heads: int, ffn_multiple: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_ffn = ResidualNorm(width), ResidualNorm(width)
        self.query_key_value, self.out = linear(width, 3 * width, bias=False), linear(width, width, bias=False)
        self.ffn = FeedForward(width, ffn_multiple)

    def forward(self, x_BLD: Tensor, live_BL: Tensor) -> Tensor:
        """[B, L, D]; rows that are not live are seen by none, and mean nothing."""
        query_BHLQ, key_BHLQ, value_BHLQ = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.query_key_value(x_BLD).chunk(3, dim=-1)
        )
        score_BHLL = query_BHLQ @ key_BHLQ.transpose(2, 3) * query_BHLQ.shape[-1] ** -0.5
        weight_BHLL = masked_softmax(score_BHLL, live_BL[:, None, None]).to(value_BHLQ.dtype)
        x_BLD = self.norm_attention(x_BLD, self.out((weight_BHLL @ value_BHLQ).transpose(1, 2).flatten(2)))
        return self.norm_ffn(x_BLD, self.ffn(x_BLD))


class TransAct(Encoder):
    """Early fusion with the target, Transformer layers, newest rows and maximum.

    Args:
        width: D.
        item_width: not used.
        num_layers: of the Transformer.
        num_heads: divides ``width``.
        ffn_multiple: hidden width of the feed-forward networks in units of D (our choice).
        newest: events that are considered.
        newest_outputs: K, newest rows that go to the head one by one.
    """

    def __init__(
        self,
        width: int,
        item_width: int,
        *,
        num_layers: int = 2,
        num_heads: int = 1,
        ffn_multiple: int = 1,
        newest: int = 100,
        newest_outputs: int = 10,
    ) -> None:
        super().__init__()
        if width % num_heads or newest < 1 or newest_outputs < 0:
            raise ValueError(
                f"TransAct has num_heads {num_heads} for width {width}, newest {newest} and newest_outputs "
                f"{newest_outputs}; it needs a number of heads that divides the width, at least 1, and at least 0"
            )
        self.width, self.newest, self.newest_outputs, self.ffn_multiple = width, newest, newest_outputs, ffn_multiple
        self.vectors = newest_outputs + 1
        self.fuse_event, self.fuse_target = linear(width, width), linear(width, width, bias=False)
        self.layers = nn.ModuleList(Layer(width, num_heads, ffn_multiple) for _ in range(num_layers))

    def forward(self, inputs: Inputs) -> Encoded:
        """The newest rows, newest first, then the maximum; zeros where there is no event."""
        padded = pad(inputs.batch, self.newest)
        x_BLD = self.fuse_event(padded.rows(inputs.x_TD)) + self.fuse_target(inputs.target_BD)[:, None]
        for layer in self.layers:
            x_BLD = layer(x_BLD, padded.live_BL)
        live_BL1 = padded.live_BL[..., None]
        lowest = torch.finfo(x_BLD.dtype).min
        maximum_BD = x_BLD.masked_fill(~live_BL1, lowest).amax(1) * padded.live_BL.any(1, keepdim=True)
        missing = max(self.newest_outputs - x_BLD.shape[1], 0)
        rows_BLD = nn.functional.pad(x_BLD * live_BL1, (0, 0, missing, 0)).flip(1)
        return Encoded([*rows_BLD[:, : self.newest_outputs].unbind(1), maximum_BD])

    def macs(self, length: int, form: Form = "folded") -> int:
        """Fusion, with the target once (published: with every event), and the layers."""
        rows, d2 = min(length, self.newest), self.width**2
        layer = rows * (4 + 2 * self.ffn_multiple) * d2 + 2 * rows**2 * self.width
        return rows * d2 + (rows if form == "paper" else 1) * d2 + len(self.layers) * layer
