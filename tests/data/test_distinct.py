"""Distinct ids of a batch against plain Python, and in the order that the model expects."""

from __future__ import annotations

import numpy as np
import pytest

from laser.data.collate import Collator
from laser.data.distinct import DistinctItems, distinct
from laser.data.histories import Slices
from laser.data.prepared import PreparedData


@pytest.mark.parametrize("most", [1, 120])
def test_parts_of_several_types_are_one_table(most):
    rng = np.random.default_rng(1)
    types = (np.uint8, np.int64, np.uint16, np.uint32, np.uint64, np.int8)
    parts = [rng.integers(0, most, count).astype(kind) for count, kind in zip((50, 0, 9, 3, 7, 1), types, strict=True)]
    ids_R, place_N = distinct(parts)
    assert (ids_R.dtype, place_N.dtype) == (np.int64, np.int32)
    assert ids_R.tolist() == sorted({int(i) for part in parts for i in part})
    assert ids_R[place_N].tolist() == [int(i) for part in parts for i in part]


@pytest.mark.parametrize("sort", [False, True])
def test_items_of_slices_in_any_order(sort):
    """What an earlier slice has shown is not looked at again, and nothing else is left out."""
    rng, item_N = np.random.default_rng(0), np.random.default_rng(1).permutation(100).astype(np.uint8)
    for count in [0, 1, 2, 3, 4, 5] * 20:
        begin_U, off_U1 = rng.integers(0, 80, count), np.concatenate([[0], np.cumsum(rng.integers(0, 21, count))])
        events = Slices({"item": item_N}, np.sort(begin_U) if sort else begin_U, off_U1)
        items = DistinctItems(events, "item", 100)
        assert items.sound
        assert items.item_I.tolist() == np.unique(events.packed("item")).tolist()


def test_batches_carry_them(prepared):
    with PreparedData(prepared) as data:
        rows = np.arange(40)
        batch = Collator(data, 20)(data.split("train").take(rows), rows, step=0, global_size=40)
    schema = data.schema
    for table in schema.tables:
        sources = (
            (schema.history, batch.items | batch.history),
            (schema.target, batch.target),
            (schema.context, batch.context),
        )
        ids = [values[f.name].flatten() for features, values in sources for f in features if f.table == table]
        if ids:
            found = batch.distinct[table][batch.place[table].long()]
            assert found.tolist() == [i for part in ids for i in part.tolist()]
