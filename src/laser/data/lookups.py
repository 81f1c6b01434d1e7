"""Which ids of a batch look up which table, and filling all of them in.

Legend of shape suffixes: N rows of a field, K ids each; S tables whose ids are marked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from laser.data.distinct import DistinctItems, distinct, few_enough
from laser.data.filling import COLUMN, fill_columns
from laser.data.histories import Slices
from laser.data.packed import Form, Packed, aligned
from laser.schema import Feature, Kind, Schema

MOST_IN_INT32 = 1 << 31
"""Cardinality of ids that int32 holds."""

INT64, INT32 = np.dtype(np.int64), np.dtype(np.int32)

Arrays = Mapping[tuple[str, str | None], np.ndarray]
"""A batch's arrays by field and name."""


@dataclass(frozen=True)
class Source:
    """Where the ids of a field come from: ``values`` [N] or [N, K], or rows of them.

    Args:
        feature: of the field.
        values: in any integer type.
        rows: N, when item codes choose rows of ``values``.
        events: histories, when these do.
    """

    feature: Feature
    values: np.ndarray
    rows: int | None = None
    events: Slices | None = None

    @property
    def dtype(self) -> np.dtype:
        """Of the field: of what is there once an event, half of the memory where that is enough."""
        per_event = self.feature.kind is Kind.EVENT_SIDE
        return INT32 if per_event and 0 < (self.feature.cardinality or 0) <= MOST_IN_INT32 else INT64

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the field."""
        return (len(self.values) if self.rows is None else self.rows, *self.values.shape[1:])

    @property
    def checked(self) -> np.ndarray:
        """All values that must be in range: of events, those of the histories."""
        return self.values if self.events is None else self.events.packed(self.feature.name)


def item_sources(schema: Schema, items: Mapping[str, np.ndarray], item_N: np.ndarray) -> list[Source]:
    """Item codes and what is known about these items, as ``schema.target``."""
    side = [Source(feature, items[feature.name], len(item_N)) for feature in schema.of_kind(Kind.ITEM_SIDE)]
    return [Source(schema.item, item_N), *side]


def event_sources(schema: Schema, events: Slices) -> list[Source]:
    """What is known about events beside their items."""
    count = int(events.off_U1[-1])
    return [Source(feature, events[feature.name], count, events) for feature in schema.of_kind(Kind.EVENT_SIDE)]


class Lookups:
    """The tables that a batch looks up.

    Args:
        schema: of the data set.
        sources: by dictionary of the batch: items, history, target, context.
    """

    def __init__(self, schema: Schema, sources: Mapping[str, Sequence[Source]]) -> None:
        self.sources = sources
        self.counts: dict[str, int] = {}
        """Ids of the batch by table."""
        for source in (source for part in sources.values() for source in part):
            if (table := source.feature.table) is not None:
                self.counts[table] = self.counts.get(table, 0) + math.prod(source.shape)
        rows = {table: schema.tables[table].rows for table in self.counts}
        self.most_bytes = sum(aligned(8 * min(rows[table], count)) for table, count in self.counts.items())
        """That distinct ids can take."""
        self.marked = [table for table, count in self.counts.items() if few_enough(rows[table], count)]
        self.first_S1 = list(accumulate((rows[table] for table in self.marked), initial=0))

    def fill(
        self, packed: Packed, arrays: Arrays, others: Mapping[str, np.ndarray], chosen: DistinctItems
    ) -> Source | None:
        """Write the ids of all sources, the distinct ones and their places; returns a source with ids out of range.

        Args:
            packed: the batch; distinct ids are added to it.
            arrays: its arrays.
            others: fields that are no lookups, to be written as int64.
            chosen: the histories' items.
        """
        sources = [source for part in self.sources.values() for source in part]
        # Other memory with the same values must not go before its address has been used.
        held = [np.ascontiguousarray(values) for values in (*(s.values for s in sources), *others.values())]
        mark_M, count_S = np.zeros(self.first_S1[-1], np.int32), np.zeros(len(self.marked), np.int64)
        columns = self._columns(held, arrays, _address(mark_M)) + _plain(held[len(sources) :], list(others), arrays)
        columns_C = np.array([*columns, *_places(chosen, arrays["item_of_T", None])], COLUMN)
        first_S1 = np.array(self.first_S1, np.int64)
        bad = fill_columns(columns_C, mark_M, first_S1, packed.address + packed.first[-1], count_S)
        if bad >= 0:
            return sources[bad]
        for table, count in zip(self.marked, count_S.tolist(), strict=True):
            packed.add(Form("distinct", table, INT64, (count,)))
        for table in self.counts:
            if table not in self.marked:
                self._sort(table, packed, arrays)
        return None

    def _columns(self, held: Sequence[np.ndarray], arrays: Arrays, mark: int) -> list[tuple[int, ...]]:
        bounds = zip(self.marked, pairwise(self.first_S1), strict=True)
        marks = {table: (mark + INT32.itemsize * first, stop - first) for table, (first, stop) in bounds}
        place = {table: _address(arrays["place", table]) for table in self.counts}
        columns, values = [], iter(held)
        for field, sources in self.sources.items():
            wide = [arrays[field, source.feature.name] for source in sources]
            for source, there, ids in zip(sources, wide, values):
                to, size = _address(there), there.itemsize
                table, limit = source.feature.table or "", source.feature.cardinality or 0
                rows = 0 if source.rows is None or source.events is not None else _address(wide[0])
                count, width = len(there), math.prod(there.shape[1:])
                columns.append((
                    _address(ids), ids.size, ids.itemsize, rows, *_slices(source.events), count, width, limit, to, size,
                    *marks.get(table, (0, 0)), place.get(table, 0),
                ))  # fmt: skip
                if table:
                    place[table] += INT32.itemsize * count * width
        return columns

    def _sort(self, table: str, packed: Packed, arrays: Arrays) -> None:
        """Distinct ids of a large table."""
        ids = [
            arrays[field, source.feature.name].reshape(-1)
            for field, sources in self.sources.items()
            for source in sources
            if source.feature.table == table
        ]
        ids_R, place_N = distinct(ids)
        packed.add(Form("distinct", table, INT64, ids_R.shape))[:] = ids_R
        arrays["place", table][:] = place_N


def _plain(held: Sequence[np.ndarray], fields: Sequence[str], arrays: Arrays) -> list[tuple[int, ...]]:
    return [
        (
            _address(values), values.size, values.itemsize, 0, 0, 0, 0, len(values), 1, 0,
            _address(arrays[field, None]), 8, 0, 0, 0,
        )
        for field, values in zip(fields, held, strict=True)
    ]  # fmt: skip


def _places(chosen: DistinctItems, item_of_T: np.ndarray) -> list[tuple[int, ...]]:
    """The place of each event's item, as a column."""
    if chosen.place_T is not None:
        item_of_T[:] = chosen.place_T
        return []
    ids, mark_M = chosen.events[chosen.item], chosen.mark_M
    return [(
        _address(ids), ids.size, ids.itemsize, 0, *_slices(chosen.events), len(item_of_T), 1, 0, 0, 0,
        _address(mark_M), len(mark_M), _address(item_of_T),
    )]  # fmt: skip


def _slices(events: Slices | None) -> tuple[int, int, int]:
    if events is None:
        return 0, 0, 0
    return _address(events.begin_U), _address(events.off_U1), len(events.begin_U)


def _address(values: np.ndarray) -> int:
    return values.__array_interface__["data"][0]
