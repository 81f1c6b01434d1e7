"""DIEN: a GRU over the newest events, then a GRU whose update gate is scaled by attention (arXiv 1809.03672).

    h_i = GRU(x_i, h_{i-1});   a_i = softmax_i( h_i W t );   h'_i = (1 - a_i u_i) h'_{i-1} + a_i u_i h~_i  (AUGRU)

and out is the last h'. Sequential by nature, so only the newest events are read. Without the publication's auxiliary
loss, whose negative events would depend on how samples are spread over processes (our choice).

Legend of shape suffixes: B samples; U distinct histories; T history events, packed; L padded history; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser.model.baselines.attention import masked_softmax
from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.baselines.padding import pad
from laser.model.costs import Form
from laser.model.dense import linear


class Cell(nn.Module):
    """GRU cell with an update gate scaled from outside; input products are made for all events at once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = linear(width, 3 * width)
        self.gates = linear(width, 2 * width, bias=False)
        self.candidate = linear(width, width, bias=False)

    def forward(self, input_BD: Tensor, state_BD: Tensor, scale_B1: Tensor) -> Tensor:
        """The next state. ``input_BD`` holds the products of update, reset and candidate, three widths."""
        update_BD, reset_BD, candidate_BD = input_BD.chunk(3, dim=-1)
        more_update_BD, more_reset_BD = self.gates(state_BD).chunk(2, dim=-1)
        update_BD = torch.sigmoid(update_BD + more_update_BD) * scale_B1
        reset_BD = torch.sigmoid(reset_BD + more_reset_BD)
        candidate_BD = torch.tanh(candidate_BD + self.candidate(reset_BD * state_BD))
        return (1 - update_BD) * state_BD + update_BD * candidate_BD


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
        x_BLD, live_BL1 = padded.rows(inputs.x_TD), padded.live_BL.unsqueeze(-1)
        # Padding is at the old end; an update scaled by 0 keeps the initial state until the first event.
        states_BLD = self._run(self.extraction, x_BLD, live_BL1.to(x_BLD.dtype))
        score_BL = (states_BLD @ self.attention(inputs.target_BD).unsqueeze(-1)).squeeze(-1)
        weight_BL1 = masked_softmax(score_BL, padded.live_BL).to(x_BLD.dtype).unsqueeze(-1)
        return Encoded([self._run(self.evolution, states_BLD, weight_BL1)[:, -1]])

    def _run(self, cell: Cell, x_BLD: Tensor, scale_BL1: Tensor) -> Tensor:
        """States after every event, [B, L, D]."""
        products_BLD, states = cell.input(x_BLD), []
        state_BD = x_BLD.new_zeros(len(x_BLD), self.width)
        for input_BD, scale_B1 in zip(products_BLD.unbind(1), scale_BL1.unbind(1)):
            state_BD = cell(input_BD, state_BD, scale_B1)
            states.append(state_BD)
        return torch.stack(states, dim=1)

    def macs(self, length: int, form: Form = "folded") -> int:
        """Two recurrences of six products per event, and the attention."""
        length = min(length, self.newest)
        return length * (2 * 6 * self.width**2 + self.width) + self.width**2
