"""Distinct ids of a batch: each is looked up once per table, however many events name it.

Found here, by the loader's threads beside the training step, and not on a GPU, where the host would have to wait for
their number.

Legend of shape suffixes: N ids that look up one table; R distinct ids of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from laser.schema import Feature, Schema
from laser.seqvault.jit import kernel

MOST_MARKS = 1 << 24
"""Tables of so many rows or fewer are marked row by row (4 bytes each, for a moment); larger ones are sorted."""


def distinct_ids(
    schema: Schema,
    history: Mapping[str, np.ndarray],
    target: Mapping[str, np.ndarray],
    context: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Per table the distinct ids of a batch, and where each id went.

    Args:
        schema: of the data set; its embedded features are looked up.
        history, target, context: ids of a batch by field, in the range that the schema allows.

    Returns:
        By table: int64 [R] distinct ids, ascending, and int32 [N] positions in them of all ids of the table, fields in
        the order history, target, context, each in schema order and flattened.
    """
    ids: dict[str, list[np.ndarray]] = {}
    for features, values in ((schema.history, history), (schema.target, target), (schema.context, context)):
        for feature in features:
            if feature.table is not None:
                ids.setdefault(feature.table, []).append(_flat(values[feature.name], feature))
    found = {name: distinct(parts, schema.tables[name].rows) for name, parts in ids.items()}
    return {name: pair[0] for name, pair in found.items()}, {name: pair[1] for name, pair in found.items()}


def distinct(parts: Sequence[np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ids of a table with ``rows`` rows.

    Args:
        parts: N ids together, each part in an integer type of its own.
        rows: of the table; no id reaches it.

    Returns:
        Ascending distinct ids, int64 [R], and each id's position in them, int32 [N].
    """
    count = sum(map(len, parts))
    if rows > min(MOST_MARKS, 64 * count):
        ids_N = np.concatenate([part.astype(np.int64, copy=False) for part in parts])
        ids_R, place_N = np.unique(ids_N, return_inverse=True)
        return ids_R, place_N.astype(np.int32)
    # Parts are read where they are: joined, they would first be made eight bytes wide.
    mark, place_N, first = np.zeros(rows, np.int32), np.empty(count, np.int32), 0
    for part in parts:
        _mark(part, mark)
    ids_R = _numbered(mark)
    for part in parts:
        _place(part, mark, place_N[first : first + len(part)])
        first += len(part)
    return ids_R, place_N


@kernel
def _mark(ids_N, mark):
    for i in range(len(ids_N)):
        mark[ids_N[i]] = 1


@kernel
def _numbered(mark):
    """Rows that are marked, whose marks become their positions."""
    count = 0
    for row in range(len(mark)):
        count += mark[row]
    ids_R = np.empty(count, np.int64)
    found = 0
    for row in range(len(mark)):
        if mark[row]:
            ids_R[found] = row
            mark[row] = found
            found += 1
    return ids_R


@kernel
def _place(ids_N, mark, place_N):
    for i in range(len(ids_N)):
        place_N[i] = mark[ids_N[i]]


def _flat(values: np.ndarray, feature: Feature) -> np.ndarray:
    assert values.ndim == (1 if feature.length == 1 else 2), (feature.name, values.shape)
    return values.reshape(-1)
