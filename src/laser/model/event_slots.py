"""Event vectors as sums of rows of several tables, gathered by one op.

Legend of shape suffixes: T history events, packed; K values of a table an event; S slots, all values of all tables of
an event; R rows; D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from laser.model.embeddings import columns
from laser.ops.gather_sum import MOST_FEW_ROWS, gather_sum


class Part(NamedTuple):
    """A table, the rows of it that each event names, and their weights, ``None`` for 1."""

    rows_RD: Tensor
    index_TK: Tensor
    weight_TK: Tensor | None


class EventSlots:
    """Collects tables and the rows of them that each event, or each item, is the sum of."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def add(self, rows_RD: Tensor, index: Tensor, weight: Tensor | None = None) -> None:
        """A table [R, D], each event's row or rows in it, [T] or [T, K], and their weights, ``None`` for 1."""
        self.parts.append(Part(rows_RD, columns(index), weight))

    def sum(self, scale_T: Tensor | None) -> Tensor:
        """x_TD in the dtype of the first table, which the others are rounded to; ``scale_T`` multiplies events."""
        dtype = self.parts[0].rows_RD.dtype
        many, few = _by_rows(self.parts)
        parts = many + few
        # Slot by slot, in which order parts are copied fastest.
        index, first = [], 0
        for rows_RD, index_TK, _ in parts:
            index.append((index_TK.t() + first).int())
            first += rows_RD.shape[0]
        index_ST = torch.cat(index)
        weight_TS = None
        if any(part.weight_TK is not None for part in parts):
            one_1T = index_ST.new_ones(1, index_ST.shape[1], dtype=torch.float32)
            weight_TS = torch.cat([_weight(part, one_1T) for part in parts]).t()
        rows_RD = torch.cat([part.rows_RD.to(dtype) for part in parts])
        sizes = sum(part.rows_RD.shape[0] for part in few), sum(part.index_TK.shape[1] for part in few)
        return gather_sum(rows_RD, index_ST.t(), weight_TS, scale_T, few=sizes)


def _by_rows(parts: list[Part]) -> tuple[list[Part], list[Part]]:
    """Tables of many rows, and those of the fewest, which have ``MOST_FEW_ROWS`` together; in their order."""
    few, rows = set(), 0
    for place in sorted(range(len(parts)), key=lambda place: parts[place].rows_RD.shape[0]):
        rows += parts[place].rows_RD.shape[0]
        if rows <= MOST_FEW_ROWS:
            few.add(place)
    return [p for n, p in enumerate(parts) if n not in few], [p for n, p in enumerate(parts) if n in few]


def _weight(part: Part, one_1T: Tensor) -> Tensor:
    """[K, T]"""
    return one_1T.expand(part.index_TK.shape[1], -1) if part.weight_TK is None else part.weight_TK.t()
