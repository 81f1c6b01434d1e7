"""Distinct ids of a batch against numpy's, and in the order that the model expects."""

from __future__ import annotations

import numpy as np
import pytest

from laser.data import distinct as module
from laser.data.collate import Collator
from laser.data.distinct import distinct
from laser.data.prepared import PreparedData


@pytest.mark.parametrize("most_marks", [0, module.MOST_MARKS])
@pytest.mark.parametrize(("count", "rows"), [(0, 5), (1, 1), (1000, 3), (1000, 50_000), (7, 2**40)])
def test_equals_numpy(monkeypatch, most_marks, count, rows):
    monkeypatch.setattr(module, "MOST_MARKS", most_marks)
    ids_N = np.random.default_rng(0).integers(0, rows, count)
    ids_R, place_N = distinct([ids_N], rows)
    assert (ids_R.dtype, place_N.dtype) == (np.int64, np.int32)
    assert np.array_equal(ids_R, np.unique(ids_N))
    assert np.array_equal(ids_R[place_N], ids_N)


@pytest.mark.parametrize("most_marks", [0, module.MOST_MARKS])
def test_parts_of_several_types_are_one_table(monkeypatch, most_marks):
    monkeypatch.setattr(module, "MOST_MARKS", most_marks)
    rng = np.random.default_rng(1)
    types = (np.uint8, np.int64, np.uint16, np.uint32, np.uint64, np.int8)
    parts = [rng.integers(0, 120, count).astype(kind) for count, kind in zip((50, 0, 9, 3, 7, 1), types, strict=True)]
    ids_R, place_N = distinct(parts, 200)
    assert (ids_R.dtype, place_N.dtype) == (np.int64, np.int32)
    assert ids_R.tolist() == sorted({int(i) for part in parts for i in part})
    assert ids_R[place_N].tolist() == [int(i) for part in parts for i in part]


def test_batches_carry_them(prepared):
    with PreparedData(prepared) as data:
        rows = np.arange(40)
        batch = Collator(data, 20)(data.split("train").take(rows), rows, step=0, global_size=40)
    schema = data.schema
    for table in schema.tables:
        sources = ((schema.history, batch.history), (schema.target, batch.target), (schema.context, batch.context))
        ids = [values[f.name].flatten() for features, values in sources for f in features if f.table == table]
        if ids:
            found = batch.distinct[table][batch.place[table].long()]
            assert found.tolist() == [i for part in ids for i in part.tolist()]
