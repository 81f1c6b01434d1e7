"""LONGER: global tokens and the newest tokens attend to the whole, merged sequence (arXiv 2505.04421).

    G = target and learned tokens;   H = the history, K neighbours merged into one token
    first layer: queries [G; newest k of H], keys and values [G; H];   then self-attention among these queries' tokens

Merged tokens are projected back to the width: kept K times as wide, as the paper's formula has it, they would cost
more than they save below 6 K width events (our derivation from the published costs). Global tokens see everything,
tokens of the sequence only those of the sequence that are not newer than themselves, so that they do not depend on
the target. Layers are pre-norm (our choice).

Legend of shape suffixes: B samples; U distinct histories; L padded history; N merged tokens; S tokens that query;
G global tokens; R tokens that are attended to; D width; H heads; Q width of a head; K merged neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form
from laser.model.dense import FeedForward, linear
from laser.model.padding import masked_softmax, pad


class Layer(nn.Module):
    """Multi-head attention of some tokens to others, then a feed-forward network."""

    def __init__(self, width: int, num_heads: int, ffn_multiple: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = linear(width, width, bias=False), linear(width, 2 * width, bias=False)
        self.out = linear(width, width, bias=False)
        self.ffn = FeedForward(width, ffn_multiple)

    def forward(self, query_BSD: Tensor, x_BRD: Tensor, seen_BSR: Tensor) -> Tensor:
        """[B, S, D]."""
        normed_BSD, normed_BRD = self.norm_attention(query_BSD), self.norm_attention(x_BRD)
        query_BHSQ, key_BHRQ, value_BHRQ = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.query(normed_BSD), *self.key_value(normed_BRD).chunk(2, dim=-1))
        )
        score_BHSR = query_BHSQ @ key_BHRQ.transpose(2, 3) * query_BHSQ.shape[-1] ** -0.5
        weight_BHSR = masked_softmax(score_BHSR, seen_BSR[:, None]).to(value_BHRQ.dtype)
        x_BSD = query_BSD + self.out((weight_BHSR @ value_BHRQ).transpose(1, 2).flatten(2))
        return x_BSD + self.ffn(self.norm_ffn(x_BSD))


class LONGER(Encoder):
    """Global tokens, token merging, one cross-attention and some self-attention layers.

    Args:
        width: D.
        item_width: not used.
        merge: K, events of one token; groups are anchored at the newest event.
        newest: k, merged tokens that query.
        learned_tokens: global tokens beside the target.
        self_layers: layers after the first.
        num_heads: divides ``width``.
        ffn_multiple: hidden width of the feed-forward networks in units of D.
    """

    def __init__(
        self,
        width: int,
        item_width: int,
        *,
        merge: int = 4,
        newest: int = 100,
        learned_tokens: int = 2,
        self_layers: int = 1,
        num_heads: int = 2,
        ffn_multiple: int = 4,
    ) -> None:
        super().__init__()
        if merge < 1 or newest < 1 or width % num_heads:
            raise ValueError(
                f"LONGER has merge {merge}, newest {newest} and num_heads {num_heads} for width {width}; "
                "it needs at least 1 and 1, and a number of heads that divides the width"
            )
        self.width, self.merge, self.newest, self.ffn_multiple = width, merge, newest, ffn_multiple
        self.learned_GD = nn.Parameter(0.02 * torch.randn(learned_tokens, width))
        self.vectors = 1 + learned_tokens
        self.projection = linear(merge * width, width) if merge > 1 else nn.Identity()
        self.cross = Layer(width, num_heads, ffn_multiple)
        self.inner = nn.ModuleList(Layer(width, num_heads, ffn_multiple) for _ in range(self_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: Inputs) -> Encoded:
        """One vector per global token."""
        tokens_BND, live_BN = self._merged(inputs)
        learned_BGD = self.learned_GD.to(tokens_BND.dtype).expand(len(tokens_BND), -1, -1)
        globals_BGD = torch.cat([inputs.target_BD.to(tokens_BND.dtype)[:, None], learned_BGD], dim=1)
        count = min(self.newest, tokens_BND.shape[1])
        x_BSD = torch.cat([globals_BGD, tokens_BND[:, -count:]], dim=1)
        seen_BSR = self._seen(live_BN, count)
        x_BSD = self.cross(x_BSD, torch.cat([globals_BGD, tokens_BND], dim=1), seen_BSR)
        seen_BSS = self._seen(live_BN[:, -count:], count)
        for layer in self.inner:
            x_BSD = layer(x_BSD, x_BSD, seen_BSS)
        return Encoded(list(self.norm(x_BSD[:, : self.vectors]).unbind(1)))

    def _merged(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Tokens of K neighbours, the oldest filled with zeros, and which of them hold an event."""
        padded = pad(inputs.batch)
        x_BLD = padded.rows(inputs.x_TD)
        short = -x_BLD.shape[1] % self.merge
        x_BLD = nn.functional.pad(x_BLD, (0, 0, short, 0))
        live_BL = nn.functional.pad(padded.live_BL, (short, 0))
        groups = x_BLD.shape[1] // self.merge
        tokens_BND = self.projection(x_BLD.reshape(len(x_BLD), groups, self.merge * self.width))
        return tokens_BND, live_BL.view(-1, groups, self.merge).any(-1)

    def _seen(self, live_BN: Tensor, queries: int) -> Tensor:
        """[B, G + queries, G + N]: what the global and the newest tokens see."""
        tokens = live_BN.shape[1]
        sees_all_BGR = nn.functional.pad(live_BN, (self.vectors, 0), value=True)[:, None].expand(-1, self.vectors, -1)
        causal_SN = torch.ones(queries, tokens, dtype=torch.bool, device=live_BN.device).tril(tokens - queries)
        causal_BSN = causal_SN & live_BN[:, None]
        return torch.cat([sees_all_BGR, nn.functional.pad(causal_BSN, (self.vectors, 0))], dim=1)

    def macs(self, length: int, form: Form = "folded") -> int:
        """Merging, the first layer, the other layers."""
        d, d2 = self.width, self.width**2
        tokens = -(-length // self.merge)
        queries, rows = self.vectors + min(self.newest, tokens), self.vectors + tokens

        def layer(rows: int) -> int:
            return queries * (2 + 2 * self.ffn_multiple) * d2 + rows * 2 * d2 + 2 * queries * rows * d

        projection = tokens * self.merge * d2 if self.merge > 1 else 0
        return projection + layer(rows) + len(self.inner) * layer(queries)
