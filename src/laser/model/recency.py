"""Recency: how long ago an event was, and how many events ago (arXiv 2602.11562; the form is our choice).

Legend of shape suffixes: B samples; U distinct histories; T history events, packed; G segments, packed; D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Recency = Literal["none", "item", "segment", "both"]
"""Where recency is added: to events (so to keys and values), to segments before the global attention, or both."""

AGE_BUCKETS = 32


def owner(off_N1: Tensor, total: int) -> Tensor:
    """Index of the group that each packed row belongs to: offsets [0, 2, 5] -> [0, 0, 1, 1, 1].

    ``total`` is the last offset, known from the packed tensor's shape, so that nothing waits for the device.
    """
    return torch.repeat_interleave(off_N1.diff(), output_size=total)


def rank_from_newest(off_N1: Tensor, owner_T: Tensor) -> Tensor:
    """Packed rows counted backwards within their group: 0 for the newest; offsets [0, 2, 5] -> [1, 0, 2, 1, 0]."""
    return off_N1[owner_T + 1] - 1 - torch.arange(owner_T.shape[0], device=owner_T.device)


def age_bucket(age: Tensor) -> Tensor:
    """Logarithmic bucket of an age in seconds: floor(log2(1 + age / 60 s)), clipped to 0 ... 31."""
    # frexp is exact where a rounded log2 of a power of two may fall below it: x = m * 2^e with m in [0.5, 1).
    exponent = torch.frexp(1.0 + age.float() / 60.0).exponent - 1
    return exponent.clamp(0, AGE_BUCKETS - 1).long()


def _table(rows: int, width: int, std: float) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=std)
    return table


class EventRecency(nn.Module):
    """An embedding of the age bucket and one of the rank from the newest event, for each event.

    Args:
        width: D.
        ranks: rows of the rank table; older events share its last row.
        std: of the initial values.
    """

    def __init__(self, width: int, ranks: int, std: float = 0.02) -> None:
        super().__init__()
        self.age = _table(AGE_BUCKETS, width, std)
        self.rank = _table(ranks, width, std)

    def forward(self, age_T: Tensor, rank_T: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of a table [rows, D] and each event's row in it, to be added to the events; ages in seconds."""
        rank_T = rank_T.clamp(max=self.rank.num_embeddings - 1)
        return [(self.age.weight, age_bucket(age_T)), (self.rank.weight, rank_T)]


class SegmentRecency(nn.Module):
    """Adds an embedding of the segment's rank from the newest.

    Args:
        width: D.
        ranks: rows of the table; older segments share its last row.
        std: of the initial values.
    """

    def __init__(self, width: int, ranks: int, std: float = 0.02) -> None:
        super().__init__()
        self.rank = _table(ranks, width, std)

    def forward(self, segment_GD: Tensor, seg_off_B1: Tensor) -> Tensor:
        """``segment_GD`` plus the embedding of each segment's rank within its sample."""
        rank_G = rank_from_newest(seg_off_B1, owner(seg_off_B1, segment_GD.shape[0]))
        recency_GD = self.rank(rank_G.clamp(max=self.rank.num_embeddings - 1))
        return segment_GD + recency_GD.to(segment_GD.dtype)
