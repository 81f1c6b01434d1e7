"""STCA: a stack of attentions of the target to histories that each layer transforms anew (arXiv 2511.06077).

    X_i = LN(SwiGLU_i(X));   q_1 = LN(SwiGLU(t));   o_i = MHA(q_i, X_i)
    q_{i+1} = LN(SwiGLU([o_1 ... o_i, t] W_C));     z = SwiGLU([o_1 ... o_M, t] W_Z)      no norm on z, no biases

The histories' side does not depend on the target: it is computed once per history.

Legend of shape suffixes: B samples; T history events, packed; L padded history; N rows of any kind; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser.model.baselines.attention import TargetAttention
from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form
from laser.model.dense import linear
from laser.model.padding import pad


class SwiGLU(nn.Module):
    """(SiLU(x W_gate) * x W_up) W_down, without biases.

    Args:
        width: D.
        multiple: hidden width in units of D.
    """

    def __init__(self, width: int, multiple: int) -> None:
        super().__init__()
        self.gate = linear(width, multiple * width, bias=False)
        self.up = linear(width, multiple * width, bias=False)
        self.down = linear(multiple * width, width, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return self.down(nn.functional.silu(self.gate(x_ND)) * self.up(x_ND))


class STCA(Encoder):
    """Stacked target-to-history cross attention.

    Args:
        width: D.
        item_width: not used.
        num_layers: M, at least 1.
        num_heads: of the attentions.
        multiple: hidden width of all SwiGLU in units of D.
    """

    def __init__(
        self, width: int, item_width: int, *, num_layers: int = 2, num_heads: int = 2, multiple: int = 1
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers of STCA is {num_layers}; it needs at least 1")
        self.width, self.multiple = width, multiple
        swiglu = lambda: SwiGLU(width, multiple)  # noqa: E731
        self.history = nn.ModuleList(nn.Sequential(swiglu(), nn.LayerNorm(width)) for _ in range(num_layers))
        self.attention = nn.ModuleList(TargetAttention(width, num_heads) for _ in range(num_layers))
        self.query = nn.Sequential(swiglu(), nn.LayerNorm(width))
        self.fusion = nn.ModuleList(
            nn.Sequential(linear((i + 2) * width, width, bias=False), swiglu(), nn.LayerNorm(width))
            for i in range(num_layers - 1)
        )
        self.output = nn.Sequential(linear((num_layers + 1) * width, width, bias=False), swiglu())

    def forward(self, inputs: Inputs) -> Encoded:
        """One vector, z."""
        padded, target_BD = pad(inputs.batch), inputs.target_BD
        query_BD, found = self.query(target_BD), []
        for history, attention, fusion in zip(self.history, self.attention, [*self.fusion, self.output]):
            x_BLD = padded.rows(history(inputs.x_TD))
            found.append(attention(query_BD, x_BLD, padded.live_BL))
            query_BD = fusion(torch.cat([*found, target_BD], dim=-1))
        return Encoded([query_BD])

    def macs(self, length: int, form: Form = "folded") -> int:
        """Histories' side, target's side, attention."""
        d2, layers = self.width**2, len(self.history)
        swiglu = 3 * self.multiple * d2
        history = layers * length * swiglu
        target = (layers + 1) * swiglu + sum(i + 2 for i in range(layers)) * d2
        # The publication reorders the products of a single query as the folded form does.
        return history + target + layers * self.attention[0].macs(length)  # type: ignore[operator]
