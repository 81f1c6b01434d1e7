"""ETA: attention to the events whose hash is nearest to the target's (arXiv 2108.04468).

    sig(x) = sign(x R);   the K events of least Hamming distance to the target;   multi-head target attention to these

Hashed are the item's embeddings. R is fixed and saved with the model; the choice passes no gradient.

Legend of shape suffixes: B samples; L padded history; K chosen events; S signs; D width; E width of the item's
embeddings.
"""

from __future__ import annotations

from laser.model.baselines.attention import RandomSigns, TargetAttention
from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form
from laser.model.padding import pad


class ETA(Encoder):
    """Top-K by hash, then attention.

    Args:
        width: D.
        item_width: E.
        signs: bits of the hash.
        top: K.
        num_heads: of the attention.
    """

    reads_items = True

    def __init__(self, width: int, item_width: int, *, signs: int = 32, top: int = 50, num_heads: int = 2) -> None:
        super().__init__()
        self.item_width, self.signs, self.top = item_width, signs, top
        self.hash = RandomSigns(item_width, signs)
        self.attention = TargetAttention(width, num_heads)

    def forward(self, inputs: Inputs) -> Encoded:
        """One vector."""
        padded = pad(inputs.batch)
        assert inputs.item_TE is not None
        event_BLS, target_BS1 = padded.rows(self.hash(inputs.item_TE)), self.hash(inputs.item_BE).unsqueeze(-1)
        # The product of signs is S - 2 * distance, small integers, exact in any precision; ties go to newer events.
        chosen = padded.top((event_BLS @ target_BS1).squeeze(-1), self.top)
        x_BKD = chosen.rows(inputs.x_TD)
        return Encoded([self.attention(inputs.target_BD, x_BKD, chosen.live_BL)])

    def macs(self, length: int, form: Form = "folded") -> int:
        """Hashes, comparisons (not counted in the published form, which compares bits), attention."""
        hashes = (length + 1) * self.signs * self.item_width + (0 if form == "paper" else length * self.signs)
        return hashes + self.attention.macs(min(length, self.top), form)
