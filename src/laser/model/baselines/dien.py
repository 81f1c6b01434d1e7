"""DIEN: a GRU over the newest events, then a GRU whose update gate is scaled by attention (arXiv 1809.03672).

Equations and code: ``laser.model.evolution``. Sequential by nature, so only the newest events are read. Without the
publication's auxiliary loss, whose negative events would depend on how samples are spread over processes (our choice).
"""

from __future__ import annotations

from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form
from laser.model.evolution import InterestEvolution
from laser.model.padding import pad


class DIEN(Encoder):
    """Interest extraction and interest evolution.

    Args:
        width: D.
        item_width: not used.
        newest: events that are read.
    """

    def __init__(self, width: int, item_width: int, *, newest: int = 100) -> None:
        super().__init__()
        self.newest = newest
        self.interest = InterestEvolution(width)

    def forward(self, inputs: Inputs) -> Encoded:
        """One vector, the last state of the interest's evolution."""
        padded = pad(inputs.batch, self.newest)
        return Encoded([self.interest(padded.rows(inputs.x_TD), padded.live_BL, inputs.target_BD)])

    def macs(self, length: int, form: Form = "folded") -> int:
        """Of the newest events."""
        return self.interest.macs(min(length, self.newest))
