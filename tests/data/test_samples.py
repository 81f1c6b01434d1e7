from __future__ import annotations

import numpy as np
import pytest

from laser.data.prepared import PreparedData
from laser.data.samples import share


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


def test_columns_stay_compact(prepared):
    """4 + 4 + 8 + 1 bytes a sample, and its context: what the docstring promises for large splits."""
    with PreparedData(prepared) as data:
        whole = data.split("train")
    columns = [whole.user_N, whole.item_N, whole.timestamp_N, whole.label_N]
    assert sum(column.itemsize for column in columns) == 17
    assert whole.context["device"].itemsize == 1
