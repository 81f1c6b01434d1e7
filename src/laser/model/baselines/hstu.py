"""HSTU, target-aware: gated attention with SiLU weights; the target sees the whole history (arXiv 2402.17152).

    [U, V, Q, K] = split(SiLU(LN(x) W + b));   A = SiLU(Q K^T / sqrt(d)) / n;   x' = x + W_o [U, x, LN(A V) * U]

The history is causal, the target comes after it and sees itself, too; no action is part of the target. n is a constant
(not the live length, so that padding changes nothing), and weights of masked pairs are 0 after the SiLU, whose value
at a masked score would not be. W_o takes three widths, as the authors' code does. Histories do not see the target, so
each is computed once for all of its samples; of the last layer only the target's row is.

Legend of shape suffixes: B samples; U distinct histories; T history events, packed; L padded history; N rows of any
kind; S queries; D width; H heads; Q width of a head.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form
from laser.model.dense import linear
from laser.model.padding import Padded, pad, pad_histories


class Parts(NamedTuple):
    """[..., D] each."""

    gate: Tensor
    value: Tensor
    query: Tensor
    key: Tensor


class Layer(nn.Module):
    """One layer; ``length_scale`` is n."""

    def __init__(self, width: int, num_heads: int, length_scale: int) -> None:
        super().__init__()
        self.width, self.num_heads, self.length_scale = width, num_heads, length_scale
        self.norm_input, self.norm_mixed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.parts = linear(width, 4 * width)
        self.out = linear(3 * width, width)

    def split(self, x_ND: Tensor) -> Parts:
        """U, V, Q and K of every row."""
        return Parts(*nn.functional.silu(self.parts(self.norm_input(x_ND))).chunk(4, dim=-1))

    def mix(self, query_BSD: Tensor, key_BLD: Tensor, value_BLD: Tensor, seen: Tensor) -> Tensor:
        """A V, [B, S, D]; ``seen`` is broadcast against [B, H, S, L]."""
        query_BHSQ, key_BHLQ, value_BHLQ = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query_BSD, key_BLD, value_BLD)
        )
        score_BHSL = query_BHSQ @ key_BHLQ.transpose(2, 3) * query_BHSQ.shape[-1] ** -0.5
        weight_BHSL = nn.functional.silu(score_BHSL) * seen / self.length_scale
        return (weight_BHSL.to(value_BHLQ.dtype) @ value_BHLQ).transpose(1, 2).flatten(2)

    def finish(self, x: Tensor, gate: Tensor, mixed: Tensor) -> Tensor:
        """x' from x, U and A V."""
        return x + self.out(torch.cat([gate, x, self.norm_mixed(mixed) * gate], dim=-1))


class HSTU(Encoder):
    """A stack of layers over history and target.

    Args:
        width: D.
        item_width: not used.
        num_layers: at least 1.
        num_heads: divides ``width``.
        length_scale: n, a constant of about the longest history.
    """

    def __init__(
        self, width: int, item_width: int, *, num_layers: int = 1, num_heads: int = 2, length_scale: int = 1000
    ) -> None:
        super().__init__()
        if num_layers < 1 or width % num_heads:
            raise ValueError(
                f"HSTU has num_layers {num_layers} and num_heads {num_heads} for width {width}; "
                "it needs at least 1 layer and a number of heads that divides the width"
            )
        self.width = width
        self.layers = nn.ModuleList(Layer(width, num_heads, length_scale) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: Inputs) -> Encoded:
        """One vector, the target's."""
        histories, padded = pad_histories(inputs.batch), pad(inputs.batch)
        x_TD, target_BD = inputs.x_TD, inputs.target_BD
        # With the newest event in the last column, a row sees the columns before it that hold an event.
        columns = histories.live_BL.shape[1]
        causal_LL = torch.ones(columns, columns, dtype=torch.bool, device=x_TD.device).tril()
        for depth, module in enumerate(self.layers):
            layer = cast("Layer", module)
            history, target = layer.split(x_TD), layer.split(target_BD)
            mixed_BD = self._target_row(layer, history, target, padded)
            if depth + 1 < len(self.layers):
                rows = [histories.rows(part) for part in (history.query, history.key, history.value)]
                mixed_ULD = layer.mix(*rows, seen=causal_LL & histories.live_BL[:, None, None])
                x_TD = layer.finish(x_TD, history.gate, histories.packed(mixed_ULD))
            target_BD = layer.finish(target_BD, target.gate, mixed_BD)
        return Encoded([self.norm(target_BD)])

    def _target_row(self, layer: Layer, history: Parts, target: Parts, padded: Padded) -> Tensor:
        key_BSD = torch.cat([padded.rows(history.key), target.key[:, None]], dim=1)
        value_BSD = torch.cat([padded.rows(history.value), target.value[:, None]], dim=1)
        seen_BS = nn.functional.pad(padded.live_BL, (0, 1), value=True)
        return layer.mix(target.query[:, None], key_BSD, value_BSD, seen_BS[:, None, None]).squeeze(1)

    def macs(self, length: int, form: Form = "folded") -> int:
        """Products of all layers; in the paper's form with every row of the last one."""
        d, d2, layers = self.width, self.width**2, len(self.layers)
        target = 7 * d2 + 2 * (length + 1) * d
        if form == "paper":
            rows = length + 1
            return layers * (7 * rows * d2 + 2 * rows**2 * d)
        inner = length * 7 * d2 + 2 * length**2 * d
        return (layers - 1) * inner + length * 4 * d2 + layers * target
