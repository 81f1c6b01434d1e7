"""Distinct ids of a batch: each is looked up once per table, however many events name it, and each item of the
histories is described once.

Found by the loader's threads beside the training step, and not on a GPU, where the host would have to wait for their
number. The loader itself marks the ids of all but very large tables while it writes them (filling.py).

Legend of shape suffixes: N ids that look up one table, or events in memory; R distinct ids of a table; U histories; T
their events, packed; I distinct items of them; M items of the data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from laser.data.histories import Slices
from laser.schema import Feature, Schema
from laser.seqvault.jit import kernel

MOST_MARKS = 1 << 24
"""Tables of so many rows or fewer are marked row by row (4 bytes each, for a moment); larger ones are sorted."""


def few_enough(rows: int, count: int) -> bool:
    """Whether ``count`` ids of a table of so many rows are found by marking its rows."""
    return rows <= min(MOST_MARKS, 64 * count)


class DistinctItems:
    """Items of events, each once.

    Args:
        events: histories.
        item: name of their items' field, in any integer type.
        limit: every code is below it, and none is negative.
    """

    def __init__(self, events: Slices, item: str, limit: int) -> None:
        self.events, self.item, self.sound = events, item, True
        """``sound``: whether all codes are in range; if not, nothing else is there."""
        self.item_I = np.empty(0, np.int64)
        """Distinct codes, ascending."""
        self.mark_M = np.empty(0, np.int32)
        """The place in ``item_I`` of each code that occurs, unless ``place_T`` is there."""
        self.place_T: np.ndarray | None = None
        """The place in ``item_I`` of each event's item, int32."""
        count = int(events.off_U1[-1])
        if few_enough(limit, count):
            self.mark_M = np.zeros(limit, np.int32)
            self.sound, self.item_I = _mark(events[item], events.begin_U, events.off_U1, self.mark_M)
        elif count:
            item_T = events.packed(item)
            self.sound = bool(item_T.min() >= 0 and item_T.max() < limit)
            self.item_I, self.place_T = distinct([item_T])


@kernel
def _mark(item_N, begin_U, off_U1, mark_M):
    """Whether all codes are in range, and the distinct ones, whose marks become their places."""
    limit, begun, seen = np.uint64(len(mark_M)), 0, 0
    for history in range(len(begin_U)):
        begin = begin_U[history]
        stop = begin + off_U1[history + 1] - off_U1[history]
        # Histories of one user share events: where they begin in ascending order, all up to the last end were seen.
        first = max(begin, seen) if begin >= begun else begin
        begun, seen = begin, max(stop, seen) if begin >= begun else stop
        for item in item_N[first:stop]:
            if np.uint64(item) >= limit:
                return False, np.empty(0, np.int64)
            mark_M[item] = 1
    item_I, place = np.empty(mark_M.sum(), np.int64), 0
    for item in range(len(mark_M)):
        if mark_M[item]:
            item_I[place] = item
            mark_M[item] = place
            place += 1
    return True, item_I


def distinct_ids(
    schema: Schema,
    history: Mapping[str, np.ndarray],
    target: Mapping[str, np.ndarray],
    context: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Per table the distinct ids of a batch, and where each id went.

    Args:
        schema: of the data set; its embedded features are looked up.
        history, target, context: ids of a batch by field, in the range that the schema allows; in ``history`` those of
            item fields by event or by item.

    Returns:
        By table: int64 [R] distinct ids, ascending, and int32 [N] positions in them of all ids of the table, fields in
        the order history, target, context, each in schema order and flattened.
    """
    ids: dict[str, list[np.ndarray]] = {}
    for features, values in ((schema.history, history), (schema.target, target), (schema.context, context)):
        for feature in features:
            if feature.table is not None:
                ids.setdefault(feature.table, []).append(_flat(values[feature.name], feature))
    found = {name: distinct(parts) for name, parts in ids.items()}
    return {name: pair[0] for name, pair in found.items()}, {name: pair[1] for name, pair in found.items()}


def distinct(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ids of a table.

    Args:
        parts: N ids together, each part in an integer type of its own.

    Returns:
        Ascending distinct ids, int64 [R], and each id's position in them, int32 [N].
    """
    ids_N = np.concatenate([part.astype(np.int64, copy=False) for part in parts])
    ids_R, place_N = np.unique(ids_N, return_inverse=True)
    return ids_R, place_N.astype(np.int32)


def _flat(values: np.ndarray, feature: Feature) -> np.ndarray:
    assert values.ndim == (1 if feature.length == 1 else 2), (feature.name, values.shape)
    return values.reshape(-1)
