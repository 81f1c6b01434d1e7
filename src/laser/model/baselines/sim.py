"""SIM with soft search: a trained relevance chooses events for attention (arXiv 2006.05639).

    r_i = (W_b x_i)(W_a t);   U = sum_i r_i x_i, with a head and a loss of its own;   the K events of highest r;
    multi-head target attention to these;   loss = loss of the model + weight * loss of the search

The choice passes no gradient, so the search learns by its own loss alone. U is divided by the history's length, so
that its head sees one scale for all lengths (our choice). Time gaps are part of x (recency embeddings).

Legend of shape suffixes: B samples; L padded history; K chosen events; D width; A width of the search.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from laser.model.baselines.attention import TargetAttention
from laser.model.baselines.encoder import Encoded, Encoder, Inputs
from laser.model.costs import Form
from laser.model.dense import linear
from laser.model.padding import pad


class SIM(Encoder):
    """General search unit with an auxiliary loss, exact search unit.

    Args:
        width: D.
        item_width: not used.
        top: K.
        num_heads: of the attention.
        search_width: A; null is D.
        search_hidden_width: of the head that trains the search.
        search_loss_weight: of its loss.
    """

    def __init__(
        self,
        width: int,
        item_width: int,
        *,
        top: int = 50,
        num_heads: int = 2,
        search_width: int | None = None,
        search_hidden_width: int = 64,
        search_loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.width, self.top, self.loss_weight = width, top, search_loss_weight
        self.search_width = search_width or width
        self.search_event = linear(width, self.search_width, bias=False)
        self.search_target = linear(width, self.search_width, bias=False)
        self.search_head = nn.Sequential(
            linear(2 * width, search_hidden_width), nn.PReLU(), linear(search_hidden_width, 1)
        )
        self.attention = TargetAttention(width, num_heads)

    def forward(self, inputs: Inputs) -> Encoded:
        """One vector; in training the loss of the search."""
        padded = pad(inputs.batch)
        x_BLD = padded.rows(inputs.x_TD)
        relevance_BL = self._relevance(inputs.target_BD, x_BLD)
        chosen = padded.top(relevance_BL, self.top)
        vector_BD = self.attention(inputs.target_BD, chosen.rows(inputs.x_TD), chosen.live_BL)
        if not self.training:
            return Encoded([vector_BD])
        length_B1 = padded.live_BL.sum(1, keepdim=True).clamp(min=1)
        weight_BL = (relevance_BL * padded.live_BL / length_B1).to(x_BLD.dtype)
        found_BD = (weight_BL[:, None] @ x_BLD).squeeze(1)
        return Encoded([vector_BD], self._loss(found_BD, inputs))

    def _relevance(self, target_BD: Tensor, x_BLD: Tensor) -> Tensor:
        """r, [B, L] in float32; W_b is applied to the target's side, which is the same for less."""
        with torch.autocast(x_BLD.device.type, enabled=False):
            query_BD = self.search_target(target_BD.float()) @ self.search_event.weight
            return (x_BLD.float() @ query_BD.unsqueeze(-1)).squeeze(-1)

    def _loss(self, found_BD: Tensor, inputs: Inputs) -> Tensor:
        logit_B = self.search_head(torch.cat([found_BD, inputs.target_BD.to(found_BD.dtype)], dim=-1)).squeeze(-1)
        loss = binary_cross_entropy_with_logits(logit_B.float(), inputs.batch.label_B, reduction="sum")
        return self.loss_weight * loss / max(inputs.batch.global_size, 1)

    def macs(self, length: int, form: Form = "folded") -> int:
        """Relevance and attention, as when serving (training adds the head of the search)."""
        projections = (length + 1 if form == "paper" else 2) * self.width * self.search_width
        score = length * (self.search_width if form == "paper" else self.width)
        return projections + score + self.attention.macs(min(length, self.top), form)
