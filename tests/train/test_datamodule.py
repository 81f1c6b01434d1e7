"""Options of the data module that reach the data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from laser.train.datamodule import CTRDataModule


@pytest.mark.parametrize(("options", "cached"), [({}, True), ({"cache_bytes": 0}, False), ({"cache_bytes": 9}, False)])
def test_histories_are_decoded_where_they_fit(prepared: Path, options: dict[str, int], cached: bool) -> None:
    module = CTRDataModule(str(prepared), **options)
    module.setup("fit")
    assert module.data is not None
    with module.data as data:
        assert (data.histories is not None) == cached


def test_a_negative_size_of_the_cache_is_refused(prepared: Path) -> None:
    with pytest.raises(ValueError, match="cache_bytes is -1; give a number of bytes, or 0 for no cache"):
        CTRDataModule(str(prepared), cache_bytes=-1)
