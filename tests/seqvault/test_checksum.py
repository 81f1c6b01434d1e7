"""Checksums of many rows at once against the library's, row by row."""

from __future__ import annotations

import google_crc32c
import numpy as np
import pytest

from laser.seqvault.checksum import crc32c_of_rows


@pytest.mark.parametrize("size", [1, 7, 8, 9, 24, 57, 64, 131])
def test_rows_have_the_checksums_of_their_bytes(size: int) -> None:
    """Sizes with and without a rest of a word; rows taken out of wider ones, as from a log."""
    wide = np.random.default_rng(size).integers(0, 256, (50, size + 5), np.uint8)
    expected = [google_crc32c.value(row.tobytes()) for row in wide[:, 5:]]
    np.testing.assert_array_equal(crc32c_of_rows(wide[:, 5:]), np.array(expected, np.uint32))


def test_no_rows() -> None:
    """Nothing has no checksums."""
    assert crc32c_of_rows(np.empty((0, 12), np.uint8)).shape == (0,)
