"""Every codec gives back what it was given, whole and in part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laser.seqvault.bits import (
    DELTA,
    HEADER_WORDS,
    LOOKUP,
    OFFSET,
    bit_length,
    codec_of,
    prefix_words,
    worst_chunk_words,
)
from laser.seqvault.decoding import unpack, unpack_at
from laser.seqvault.packing import pack_chunks

LARGEST = 2**64 - 1


def pack(columns: np.ndarray, signed: bool = False) -> np.ndarray:
    words = np.zeros(worst_chunk_words(columns.shape[1], columns.shape[0]) + 2, np.uint64)
    cuts, places = np.array([0, columns.shape[1]]), np.empty(2, np.int64)
    end = pack_chunks(columns, np.full(len(columns), signed), np.array([7], np.uint64), cuts, words, places)
    assert end <= len(words) - 2
    words[end:] = LARGEST  # what lies behind a chunk must not matter
    return words


def codec(words: np.ndarray, column: int) -> int:
    return int(codec_of(words[HEADER_WORDS + column]))


def check(columns: np.ndarray, signed: bool = False) -> np.ndarray:
    words, count = pack(columns, signed), columns.shape[1]
    for column in range(len(columns)):
        for start, stop in ((0, count), (count // 3, count - count // 4), (count - 1, count), (count, count)):
            for dtype, stride in ((np.uint64, 1), (np.uint16, 3)):
                dest = np.zeros((count + 1) * stride, dtype)
                unpack(words, 0, column, start, stop, dest, stride - 1, stride, np.empty(1024, np.uint64))
                found = dest[stride - 1 :: stride][: stop - start]
                np.testing.assert_array_equal(found, columns[column, start:stop].astype(dtype))
        some, dest = np.arange(count // 4, count, 3), np.empty(1024, np.uint64)
        unpack_at(words, 0, column, some, len(some), dest, np.empty(1024, np.uint64))
        np.testing.assert_array_equal(dest[: len(some)], columns[column, some])
    return words


@pytest.mark.parametrize("count", [1, 2, 15, 16, 63, 64, 65, 999, 1000])
@pytest.mark.parametrize("bits", [0, 1, 2, 7, 8, 31, 32, 33, 63, 64])
def test_any_width_and_length(rng: np.random.Generator, count: int, bits: int) -> None:
    values = rng.integers(0, LARGEST, count, dtype=np.uint64, endpoint=True) >> np.uint64(64 - bits if bits else 63)
    if bits == 0:
        values[:] = 0
    times = np.sort(values.view(np.int64)).view(np.uint64)
    check(np.stack([times, values]))
    check(np.stack([times, values]), signed=True)


def test_codecs_are_chosen_where_they_pay(rng: np.random.Generator) -> None:
    count = 1000
    times = np.cumsum(rng.integers(0, 100, count)).astype(np.uint64)
    times[500:] += np.uint64(10**12)  # one long pause
    few = rng.choice(rng.integers(0, LARGEST, 12, dtype=np.uint64), count)
    many = rng.integers(0, 2**20, count).astype(np.uint64)
    words = check(np.stack([times, few, many]))
    assert [codec(words, column) for column in range(3)] == [DELTA, LOOKUP, OFFSET]
    assert int(prefix_words(words, 0, 3)) * 64 / count < 7 + 4 + 20 + 5  # bits of an event


def test_negative_values_pack_narrowly() -> None:
    values = np.array([-3, 4, -1, 0] * 100).view(np.uint64)
    words = check(np.stack([np.zeros(400, np.uint64), values]), signed=True)
    assert prefix_words(words, 0, 2) < HEADER_WORDS + 2 + 3 + 400 * 3 / 64


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300), min_size=1, max_size=200))
def test_any_values(values: list[int]) -> None:
    column = np.array(values, np.int64)
    check(np.stack([np.sort(column), column]).view(np.uint64), signed=True)


def test_bit_length() -> None:
    for value in (0, 1, 2, 3, 255, 256, 2**31, 2**32, 2**63, LARGEST):
        assert bit_length(np.uint64(value)) == value.bit_length()
