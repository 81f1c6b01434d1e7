"""Distinct ids of a batch: each is looked up once per table, however many events name it.

Found by the loader's threads beside the training step, and not on a GPU, where the host would have to wait for their
number. The loader itself marks the ids of all but very large tables while it writes them (filling.py).

Legend of shape suffixes: N ids that look up one table; R distinct ids of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from laser.schema import Feature, Schema


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
