"""Event vectors as sums of rows of several tables, gathered by one op.

Legend of shape suffixes: T history events, packed; S slots, all values of all fields of an event; R rows; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laser.model.embeddings import columns
from laser.ops.gather_sum import gather_sum


class EventSlots:
    """Collects tables and the rows of them that each event, or each item, is the sum of."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.index: list[Tensor] = []
        self.weight: list[Tensor | None] = []
        self.count = 0

    def add(self, rows_RD: Tensor, index: Tensor, weight: Tensor | None = None) -> None:
        """A table [R, D], each event's row or rows in it, [T] or [T, K], and their weights, ``None`` for 1."""
        self.index.append(columns((index + self.count).int()))
        self.weight.append(weight)
        self.rows.append(rows_RD)
        self.count += rows_RD.shape[0]

    def sum(self, scale_T: Tensor | None) -> Tensor:
        """x_TD in the dtype of the first table, which the others are rounded to; ``scale_T`` multiplies events."""
        # Slot by slot, in which order parts are copied fastest.
        index_ST = torch.cat([index.t() for index in self.index])
        weight_TS = None
        if any(weight is not None for weight in self.weight):
            one_1T = index_ST.new_ones(1, index_ST.shape[1], dtype=torch.float32)
            weights = zip(self.index, self.weight, strict=True)
            weight_TS = torch.cat([one_1T.expand(i.shape[1], -1) if w is None else w.t() for i, w in weights]).t()
        rows_RD = torch.cat([rows.to(self.rows[0].dtype) for rows in self.rows])
        return gather_sum(rows_RD, index_ST.t(), weight_TS, scale_T)
