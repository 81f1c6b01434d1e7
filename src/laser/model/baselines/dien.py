"""DIEN: a GRU over the newest events, then a GRU whose update gate is scaled by attention (arXiv 1809.03672).

    h_i = GRU(x_i, h_{i-1});   a_i = softmax_i( h_i W t );   h'_i = (1 - a_i u_i) h'_{i-1} + a_i u_i h~_i  (AUGRU)

and out is the last h'. Sequential by nature, so only the newest events are read. Without the publication's auxiliary
loss, whose negative events would depend on how samples are spread over processes (our choice).

Legend of shape suffixes: B samples; U distinct histories; T history events, packed; L padded history; D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from laser.model.baselines.attention import masked_softmax
from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.baselines.padding import pad
from laser.model.costs import Form
from laser.model.dense import linear
from laser.ops.gated_recurrence import gated_recurrence


class Cell(nn.Module):
    """The weights of one recurrence; input products are made for all events at once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = linear(width, 3 * width)
        self.gates = linear(width, 2 * width, bias=False)
        self.candidate = linear(width, width, bias=False)

    def forward(self, x_BLD: Tensor, scale_BL: Tensor) -> Tensor:
        """States after every event, [B, L, D]; ``scale_BL`` scales the update gate."""
        return gated_recurrence(self.input(x_BLD), scale_BL, self.gates.weight, self.candidate.weight)


class DIEN(Encoder):
    """Interest extraction and interest evolution.

    Args:
        width: D.
        item_width: not used.
        newest: events that are read.
    """

    def __init__(self, width: int, item_width: int, *, newest: int = 100) -> None:
        super().__init__()
        self.width, self.newest = width, newest
        self.extraction, self.evolution = Cell(width), Cell(width)
        self.attention = linear(width, width, bias=False)

    def forward(self, inputs: Inputs) -> Encoded:
        """One vector, the last state of the interest's evolution."""
        padded = pad(inputs.batch, self.newest)
        x_BLD = padded.rows(inputs.x_TD)
        # Padding is at the old end; an update scaled by 0 keeps the initial state until the first event.
        states_BLD = self.extraction(x_BLD, padded.live_BL.to(x_BLD.dtype))
        score_BL = (states_BLD @ self.attention(inputs.target_BD).unsqueeze(-1)).squeeze(-1)
        weight_BL = masked_softmax(score_BL, padded.live_BL)
        return Encoded([self.evolution(states_BLD, weight_BL)[:, -1]])

    def macs(self, length: int, form: Form = "folded") -> int:
        """Two recurrences of six products per event, and the attention."""
        length = min(length, self.newest)
        return length * (2 * 6 * self.width**2 + self.width) + self.width**2
