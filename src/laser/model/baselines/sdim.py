"""SDIM: sums of the events whose hash signature equals the target's (arXiv 2205.10249).

    out = 1/G sum_g L2norm( sum_{i: sig_g(x_i) = sig_g(t)} x_i )

A signature is ``tau`` signs of random projections of the item's embeddings, so that an event's expected weight is
(1 - angle / pi)^tau. What is summed are the event vectors. No learned parameters.

Legend of shape suffixes: B samples; T history events, packed; L padded history; G signatures; S = G * tau signs;
D width; E width of the item's embeddings.
"""

from __future__ import annotations

from torch import nn

from laser.model.baselines.attention import RandomSigns
from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form
from laser.model.padding import pad


class SDIM(Encoder):
    """Hash-based sampling attention.

    Args:
        width: D.
        item_width: E.
        signs: number of signs in all (paper: 48).
        signs_per_signature: tau (paper: 3); divides ``signs``.
    """

    reads_items = True

    def __init__(self, width: int, item_width: int, *, signs: int = 48, signs_per_signature: int = 3) -> None:
        super().__init__()
        if signs_per_signature < 1 or signs % signs_per_signature:
            raise ValueError(
                f"signs of SDIM is {signs}, not a multiple of signs_per_signature {signs_per_signature}; "
                "every signature takes so many signs"
            )
        self.width, self.item_width, self.tau = width, item_width, signs_per_signature
        self.hash = RandomSigns(item_width, signs)
        self.signatures = signs // signs_per_signature

    def forward(self, inputs: Inputs) -> Encoded:
        """One vector."""
        padded = pad(inputs.batch)
        assert inputs.item_TE is not None
        event_BLGt = padded.rows(self.hash(inputs.item_TE)).unflatten(-1, (self.signatures, self.tau))
        target_BGt = self.hash(inputs.item_BE).unflatten(-1, (self.signatures, self.tau))
        # Rows of padding have signs of 0, which agree with nothing.
        equal_BGL = (event_BLGt == target_BGt[:, None]).all(-1).transpose(1, 2)
        x_BLD = padded.rows(inputs.x_TD)
        sum_BGD = equal_BGL.to(x_BLD.dtype) @ x_BLD
        return Encoded([nn.functional.normalize(sum_BGD.float(), dim=-1, eps=1e-6).mean(1)])

    def macs(self, length: int, form: Form = "folded") -> int:
        """Hashes of events and target, and the sums (the published form has those ready per user and bucket)."""
        hashes = (length + 1) * self.signatures * self.tau * self.item_width
        return hashes + (0 if form == "paper" else length * self.signatures * self.width)
