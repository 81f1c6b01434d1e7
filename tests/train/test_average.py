"""Settings of the moving average; what it computes is tested in tests/distributed/test_average.py."""

from __future__ import annotations

import pytest

from laser.train.average import Average
from laser.train.table_storage import Storage, TableStorage


def test_the_first_updates_weigh_alike_and_later_ones_by_the_decay():
    average = Average(decay=0.9, start_step=5, every=3)
    assert average.first_step == 6
    assert [average.share_left(step) for step in (6, 9, 12)] == [0.0, 0.5, pytest.approx(2 / 3)]
    assert average.share_left(300) == pytest.approx(0.9**3)
    assert Average(start_step=0, every=4).first_step == 4


@pytest.mark.parametrize(("options", "words"), [({"decay": 1.1}, "decay is 1.1"), ({"every": 0}, "every is 0")])
def test_what_cannot_be_meant_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Average(**options).check(Storage())


@pytest.mark.parametrize("table", [TableStorage(weights="float16"), TableStorage(memory="uvm_caching")], ids=str)
def test_tables_that_cannot_be_averaged_are_refused(table):
    Average().check(Storage(default=TableStorage(memory="uvm")))
    with pytest.raises(ValueError, match="needs tables in float32 and not behind a cache"):
        Average().check(Storage(tables={"item": table}))
