"""Evolution of an interest over the newest events: two recurrences, the second one steered by the target.

    h_i = GRU(x_i, h_{i-1});   a_i = softmax_i( h_i W t );   h'_i = (1 - a_i u_i) h'_{i-1} + a_i u_i h~_i  (AUGRU)

and out is the last h' (DIEN, arXiv 1809.03672). Not in LASER's paper, whose short sequence is a mean: an option, since
DIEN was the best of the baselines, and far ahead of LASER in the paper's form (``docs/study.md``).

Legend of shape suffixes: B samples; L newest events, oldest first; D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from laser.model.dense import linear
from laser.model.padding import masked_softmax
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


class InterestEvolution(nn.Module):
    """Interest extraction and interest evolution.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.extraction, self.evolution = Cell(width), Cell(width)
        self.attention = linear(width, width, bias=False)

    def forward(self, x_BLD: Tensor, live_BL: Tensor, target_BD: Tensor) -> Tensor:
        """The last state of the interest's evolution, [B, D]; zeros where no event is live."""
        return self.evolve(self.extract(x_BLD, live_BL), live_BL, target_BD)

    def extract(self, x_BLD: Tensor, live_BL: Tensor) -> Tensor:
        """States of the first recurrence, [B, L, D]: of the history alone."""
        # Padding is at the old end; an update scaled by 0 keeps the initial state until the first event.
        return self.extraction(x_BLD, live_BL.to(x_BLD.dtype))

    def evolve(self, state_BLD: Tensor, live_BL: Tensor, target_BD: Tensor) -> Tensor:
        """The last state of the second recurrence, [B, D]."""
        score_BL = (state_BLD @ self.attention(target_BD).unsqueeze(-1)).squeeze(-1)
        return self.evolution(state_BLD, masked_softmax(score_BL, live_BL))[:, -1]

    def macs(self, events: int) -> int:
        """Two recurrences of six products per event, and the attention."""
        return events * (2 * 6 * self.width**2 + self.width) + self.width**2
