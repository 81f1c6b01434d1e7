"""TWIN: one relevance for both retrieval and attention (arXiv 2302.02352).

    alpha = (x W_K)(t W_Q)^T / sqrt(d_k) + beta[bucket of the event's age];   the K events of highest alpha over all
    heads;   out = concat_h softmax(alpha_h) x W_V, times W_O

The publication's cross features, each one number per event, are the age buckets here; side information of events is
part of x. Retrieval and attention share parameters, which learn from the attention alone.

Legend of shape suffixes: B samples; L padded history; K chosen events; H heads; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser.model.baselines.attention import TargetAttention
from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form
from laser.model.padding import Padded, pad
from laser.model.recency import AGE_BUCKETS, age_bucket


class TWIN(Encoder):
    """Consistent top-K retrieval and attention.

    Args:
        width: D.
        item_width: not used.
        top: K (paper: 100).
        num_heads: H (paper: 4).
    """

    def __init__(self, width: int, item_width: int, *, top: int = 100, num_heads: int = 4) -> None:
        super().__init__()
        self.top = top
        self.attention = TargetAttention(width, num_heads)
        self.age = nn.Embedding(AGE_BUCKETS, num_heads)
        nn.init.zeros_(self.age.weight)

    def forward(self, inputs: Inputs) -> Encoded:
        """One vector."""
        padded = pad(inputs.batch)
        with torch.no_grad():
            score_BHL, _ = self._scores(inputs, padded)
        chosen = padded.top(score_BHL.sum(1), self.top)
        score_BHK, x_BKD = self._scores(inputs, chosen)
        return Encoded([self.attention.pool(score_BHK, x_BKD, chosen.live_BL)])

    def _scores(self, inputs: Inputs, padded: Padded) -> tuple[Tensor, Tensor]:
        """The relevance of given events, [B, H, L], and these events."""
        x_BLD = padded.rows(inputs.x_TD)
        bias_BLH = self.age(age_bucket(padded.rows(inputs.batch.age_T)))
        return self.attention.score(inputs.target_BD, x_BLD) + bias_BLH.transpose(1, 2), x_BLD

    def macs(self, length: int, form: Form = "folded") -> int:
        """Relevance of all events, then attention to the chosen ones."""
        top, heads = min(length, self.top), self.attention
        if form == "paper":
            # Keys of every event, with the query; values of the chosen.
            d, d2 = heads.width, heads.width**2
            return length * (d2 + d) + top * (d2 + d) + 2 * d2
        query = 2 * heads.width**2
        return heads.macs(top) + length * heads.num_heads * heads.width + query
