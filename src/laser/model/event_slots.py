"""Event vectors as sums of rows of several tables, gathered by one op.

Legend of shape suffixes: T history events, packed; K values of a table an event; S slots, all values of all tables of
an event; R rows; D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from laser.model.embeddings import columns
from laser.ops.gather_sum import LEAST_FEW_ROWS, MOST_FEW_ROWS, gather_sum


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
        """x_TD in the dtype of the first table, which the others are rounded to; ``scale_T`` multiplies events.

        Tables with few rows come last, in groups that are filled up with rows that no event names.
        """
        many, groups = _groups(self.parts)
        first_RD = self.parts[0].rows_RD
        zeros_RD = first_RD.new_zeros(max(map(_spare, groups), default=0), first_RD.shape[1])
        rows, index, first = [], [], 0
        for parts, spare in [(many, 0)] + [(group, _spare(group)) for group in groups]:
            for part in parts:
                rows.append(part.rows_RD.to(first_RD.dtype))
                # Slot by slot, in which order parts are copied fastest.
                index.append((part.index_TK.t() + first).int())
                first += part.rows_RD.shape[0]
            rows.append(zeros_RD[:spare])
            first += spare
        index_ST, weight_TS = torch.cat(index), None
        if any(part.weight_TK is not None for part in self.parts):
            one_1T = index_ST.new_ones(1, index_ST.shape[1], dtype=torch.float32)
            weight_TS = torch.cat([_weight_KT(part, one_1T) for part in sum(groups, many)]).t()
        few = [(_rows(group) + _spare(group), sum(part.index_TK.shape[1] for part in group)) for group in groups]
        return gather_sum(torch.cat(rows), index_ST.t(), weight_TS, scale_T, few=few)


def _rows(parts: list[Part]) -> int:
    return sum(part.rows_RD.shape[0] for part in parts)


def _spare(group: list[Part]) -> int:
    """Rows that a group lacks for a power of two."""
    return max(LEAST_FEW_ROWS, 1 << (_rows(group) - 1).bit_length()) - _rows(group)


def _groups(parts: list[Part]) -> tuple[list[Part], list[list[Part]]]:
    """Tables of many rows, and groups of those with the fewest, as ``few`` of ``gather_sum`` wants them."""
    many, groups, room = [], [[]], MOST_FEW_ROWS - LEAST_FEW_ROWS
    for part in sorted(parts, key=lambda part: part.rows_RD.shape[0]):
        if part.rows_RD.shape[0] <= _spare(groups[-1]):
            groups[-1].append(part)
        elif (new := _rows([part]) + _spare([part])) <= room:
            groups.append([part])
            room -= new
        else:
            many.append(part)
    return many, [group for group in groups if group]


def _weight_KT(part: Part, one_1T: Tensor) -> Tensor:
    return one_1T.expand(part.index_TK.shape[1], -1) if part.weight_TK is None else part.weight_TK.t()
