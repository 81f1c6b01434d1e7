"""Base: the production model without a long sequence, only the mean of the newest events (100) in the head."""

from __future__ import annotations

from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form


class NewestMean(Encoder):
    """Adds nothing to the head's own mean of the newest events (``newest_events``)."""

    vectors = 0

    def __init__(self, width: int, item_width: int) -> None:
        super().__init__()

    def forward(self, inputs: Inputs) -> Encoded:
        """No vector."""
        return Encoded()

    def macs(self, length: int, form: Form = "folded") -> int:
        """None."""
        return 0
