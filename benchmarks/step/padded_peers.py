"""Peers in plain PyTorch: our own equivalents of what FuxiCTR trains, written from the equations (not its code).

Every history is a row of ``length`` columns, the newest event last, id 0 and a mask of 0 where there is none; each
field is looked up in an nn.Embedding for every column, fields are concatenated to events [B, L, D], and one vector of
the encoder goes with target and context into an MLP of 512, 256 and 128. Adam steps everything, tables included (dense
gradients). Left out is what would only make them slower: a second, short sequence, batch norm, regularisation.

- DIN: a_i = m_i MLP([t, x_i, t - x_i, t * x_i]), hidden width 64 with Dice, no softmax; sum of a_i x_i.
- ETA: 32 signs of random projections; the 50 events of least Hamming distance; attention of one head to these.
- SDIM: 16 signatures of 3 signs; mean over signatures of the normalised sum of the events that share the target's.

Legend of shape suffixes: B samples; L columns; F fields; D width of an event; S signs; G signatures; K chosen events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from laser.batch import Batch

MLP_WIDTHS = (512, 256, 128)


@dataclass(frozen=True)
class PaddedBatch:
    """Ids from 1 on; 0 is padding."""

    history_FBL: Tensor
    live_BL: Tensor
    target_FB: Tensor
    context_B: Tensor
    label_B: Tensor


def padded(batch: Batch, length: int) -> PaddedBatch:
    """The same samples with the newest ``length`` events of each history, right-aligned."""
    rank_L = torch.arange(length - 1, -1, -1, device=batch.off_U1.device)
    live_BL = rank_L < batch.off_U1.diff()[batch.history_of_B][:, None]
    event_BL = torch.where(live_BL, batch.off_U1[1:][batch.history_of_B][:, None] - 1 - rank_L, 0)
    by_event = batch.by_event().history
    history = [(ids_T + 1)[event_BL] * live_BL for ids_T in by_event.values()]
    none_B = torch.zeros_like(batch.history_of_B)
    target = [batch.target[name] + 1 if name in batch.target else none_B for name in by_event]
    context_B = next(iter(batch.context.values())) + 1
    return PaddedBatch(torch.stack(history), live_BL.float(), torch.stack(target), context_B, batch.label_B)


class Dice(nn.Module):
    """p x + alpha (1 - p) x with p = sigmoid of the batch-normalised x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x_ND: Tensor) -> Tensor:
        p_ND = self.norm(x_ND).sigmoid()
        return p_ND * x_ND + self.alpha * (1 - p_ND) * x_ND


class DIN(nn.Module):
    """Target attention by a small network, not normalised."""

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.hidden, self.activation, self.out = nn.Linear(4 * width, hidden), Dice(hidden), nn.Linear(hidden, 1)

    def forward(self, target_BD: Tensor, x_BLD: Tensor, live_BL: Tensor) -> Tensor:
        t_BLD = target_BD[:, None].expand_as(x_BLD)
        pair_N4D = torch.cat([t_BLD, x_BLD, t_BLD - x_BLD, t_BLD * x_BLD], dim=-1).flatten(0, 1)
        score_BL = self.out(self.activation(self.hidden(pair_N4D))).view(live_BL.shape)
        return ((score_BL * live_BL)[..., None] * x_BLD).sum(1)


class ETA(nn.Module):
    """Top K by hash, then softmax attention."""

    project_DS: Tensor

    def __init__(self, width: int, signs: int = 32, top: int = 50, attention_width: int = 64) -> None:
        super().__init__()
        self.top, self.scale = top, attention_width**-0.5
        self.register_buffer("project_DS", torch.randn(width, signs))
        self.query, self.key, self.value = (nn.Linear(width, attention_width, bias=False) for _ in range(3))
        self.out = nn.Linear(attention_width, width, bias=False)

    def forward(self, target_BD: Tensor, x_BLD: Tensor, live_BL: Tensor) -> Tensor:
        with torch.no_grad():
            sign_BLS = (x_BLD @ self.project_DS.to(x_BLD.dtype)).sign()
            sign_BS1 = (target_BD @ self.project_DS.to(x_BLD.dtype)).sign()[..., None]
            agreement_BL = (sign_BLS @ sign_BS1).squeeze(-1).masked_fill(live_BL == 0, -torch.inf)
            chosen_BK = agreement_BL.topk(min(self.top, x_BLD.shape[1]), dim=1, sorted=False).indices
        x_BKD = x_BLD.gather(1, chosen_BK[..., None].expand(-1, -1, x_BLD.shape[2]))
        score_BK = (self.key(x_BKD) @ self.query(target_BD)[..., None]).squeeze(-1) * self.scale
        weight_BK = score_BK.float().masked_fill(live_BL.gather(1, chosen_BK) == 0, -1e9).softmax(-1)
        return self.out((weight_BK.to(x_BKD.dtype)[:, None] @ self.value(x_BKD)).squeeze(1))


class SDIM(nn.Module):
    """Sums of the events in the target's hash buckets."""

    project_DS: Tensor

    def __init__(self, width: int, signatures: int = 16, signs: int = 3) -> None:
        super().__init__()
        self.signs = signs
        self.register_buffer("project_DS", torch.randn(width, signatures * signs))
        self.register_buffer("power_S", 2 ** torch.arange(signs))

    def forward(self, target_BD: Tensor, x_BLD: Tensor, live_BL: Tensor) -> Tensor:
        with torch.no_grad():
            equal_BLG = self._bucket(x_BLD) == self._bucket(target_BD)[:, None]
            equal_BGL = (equal_BLG & (live_BL > 0)[..., None]).transpose(1, 2).to(x_BLD.dtype)
        return normalize((equal_BGL @ x_BLD).float(), dim=-1, eps=1e-6).mean(1)

    def _bucket(self, x: Tensor) -> Tensor:
        positive = (x @ self.project_DS.to(x.dtype) > 0).unflatten(-1, (-1, self.signs))
        return (positive * self.power_S).sum(-1)


PEERS: dict[str, Callable[[int], nn.Module]] = {"DIN": DIN, "ETA": ETA, "SDIM": SDIM}


class PeerModel(nn.Module):
    """Embeddings, one encoder, MLP.

    Args:
        encoder: key of ``PEERS``.
        cardinalities: of the history's fields; the target has the same, id 0 where it has no value.
        context_cardinality: of the one context field.
        width: of embeddings.
    """

    def __init__(self, encoder: str, cardinalities: Sequence[int], context_cardinality: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows + 1, width, padding_idx=0) for rows in cardinalities)
        self.context = nn.Embedding(context_cardinality + 1, width)
        for table in [*self.tables, self.context]:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]
        event_width = len(cardinalities) * width
        self.encoder = PEERS[encoder](event_width)
        widths = [2 * event_width + width, *MLP_WIDTHS]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, batch: PaddedBatch) -> Tensor:
        """Logits [B]."""
        x_BLD = torch.cat([table(ids) for table, ids in zip(self.tables, batch.history_FBL)], dim=-1)
        target_BD = torch.cat([table(ids) for table, ids in zip(self.tables, batch.target_FB)], dim=-1)
        interest_BD = self.encoder(target_BD, x_BLD, batch.live_BL)
        inputs = torch.cat([target_BD, interest_BD, self.context(batch.context_B)], dim=-1)
        return self.head(inputs).squeeze(-1)


class PeerStep:
    """Forward, backward, Adam.

    Args:
        model: the peer.
        device: where it is trained.
        half: bfloat16 autocast; otherwise float32, with TF32 products where the caller allows them.
    """

    def __init__(self, model: PeerModel, device: torch.device, half: bool) -> None:
        self.model: Any = model.to(device)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        self.context = (lambda: torch.autocast(device.type, torch.bfloat16)) if half else nullcontext

    def step(self, batch: PaddedBatch) -> Tensor:
        """The loss."""
        with self.context():
            logit_B = self.model(batch)
        loss = binary_cross_entropy_with_logits(logit_B.float(), batch.label_B)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss
