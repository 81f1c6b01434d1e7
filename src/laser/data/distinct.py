"""Distinct ids of a batch: each is looked up once per table, however many events name it.

Found here, by the loader's threads beside the training step, and not on a GPU, where the host would have to wait for
their number.

Legend of shape suffixes: N ids that look up one table; R distinct ids of it.
"""

from __future__ import annotations

from collections.abc import Mapping

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
    found = {name: distinct(np.concatenate(parts), schema.tables[name].rows) for name, parts in ids.items()}
    return {name: pair[0] for name, pair in found.items()}, {name: pair[1] for name, pair in found.items()}


def distinct(ids_N: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending distinct ids, int64 [R], and each id's position in them, int32 [N], of a table with ``rows`` rows."""
    if rows <= min(MOST_MARKS, 64 * len(ids_N)):
        return _marked(ids_N, rows)
    ids_R, place_N = np.unique(ids_N, return_inverse=True)
    return ids_R.astype(np.int64, copy=False), place_N.astype(np.int32)


@kernel
def _marked(ids_N, rows):
    mark = np.zeros(rows, np.int32)
    for i in range(len(ids_N)):
        mark[ids_N[i]] = 1
    count = 0
    for row in range(rows):
        count += mark[row]
    ids_R = np.empty(count, np.int64)
    found = 0
    for row in range(rows):
        if mark[row]:
            ids_R[found] = row
            mark[row] = found
            found += 1
    place_N = np.empty(len(ids_N), np.int32)
    for i in range(len(ids_N)):
        place_N[i] = mark[ids_N[i]]
    return ids_R, place_N


def _flat(values: np.ndarray, feature: Feature) -> np.ndarray:
    assert values.ndim == (1 if feature.length == 1 else 2), (feature.name, values.shape)
    return values.reshape(-1).astype(np.int64, copy=False)
