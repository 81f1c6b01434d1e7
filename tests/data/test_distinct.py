"""Distinct ids of a batch against plain Python, and in the order that the model expects."""

from __future__ import annotations

import numpy as np
import pytest

from laser.data.collate import Collator
from laser.data.distinct import distinct
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
