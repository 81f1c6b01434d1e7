from __future__ import annotations

import numpy as np
import pytest

from laser.data.prepared import PreparedData
from laser.data.samples import Samples, share


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shares_join_to_the_whole_and_are_nearly_equal(count, world_size):
    parts = [range(count)[share(count, rank, world_size)] for rank in range(world_size)]
    assert [row for part in parts for row in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_take(prepared):
    with PreparedData(prepared) as data:
        whole = data.split("val")
    rows = np.array([7, 0, 7])
    part = whole.take(rows)
    assert len(part) == 3
    for name in ("user_N", "item_N", "timestamp_N", "label_N"):
        assert (getattr(part, name) == getattr(whole, name)[rows]).all()
    assert (part.context["device"] == whole.context["device"][rows]).all()


@pytest.mark.parametrize("kind", [np.uint32, np.int64])
def test_take_equals_indexing_for_columns_of_any_type(kind):
    rng = np.random.default_rng(0)
    user, item, time, label, tags = (
        rng.integers(0, 100, shape).astype(dtype)
        for shape, dtype in ((50, "uint16"), (50, "int32"), (50, "int64"), (50, "uint8"), ((50, 3), "uint16"))
    )
    whole = Samples(user, item, time, label, {"tags": tags, "user": user})
    for rows in (rng.integers(0, 50, 40).astype(kind), np.empty(0, kind), np.arange(50, dtype=kind)[::2]):
        part = whole.take(rows)
        pairs = [(part.user_N, user), (part.item_N, item), (part.timestamp_N, time), (part.label_N, label)]
        pairs += [(part.context["tags"], tags), (part.context["user"], user)]
        for found, values in pairs:
            assert found.dtype == values.dtype
            assert np.array_equal(found, values[rows])
    with pytest.raises(IndexError, match="row 50 of 50 samples"):
        whole.take(np.array([3, 50], kind))


def test_take_of_columns_that_are_not_contiguous():
    table = np.arange(60).reshape(10, 6)
    whole = Samples(table[:, 0], table[::-1, 1], table[:, 2], table[:, 3], {"tags": table[:, 4:]})
    part = whole.take(np.array([9, 2]))
    assert part.user_N.tolist() == [54, 12]
    assert part.item_N.tolist() == [1, 43]
    assert part.context["tags"].tolist() == [[58, 59], [16, 17]]


def test_columns_stay_compact(prepared):
    """4 + 4 + 8 + 1 bytes a sample, and its context: what the docstring promises for large splits."""
    with PreparedData(prepared) as data:
        whole = data.split("train")
    columns = [whole.user_N, whole.item_N, whole.timestamp_N, whole.label_N]
    assert sum(column.itemsize for column in columns) == 17
    assert whole.context["device"].itemsize == 1
