"""Bit fields in arrays of 8-byte words, and the words of a chunk's header.

Bit fields are little endian within and across words: value i of width w sits at bit i * w of its area. Everything is
aligned to words because byte-wise loads made the same packing eight times slower to decode.

A chunk, in words (docs/seqvault_format.md has the bits):

    0            magic, events, columns, CRC32C of the header
    1            user
    2 + c        column c: codec, widths, count, whether a base precedes its area, checksum of the area
    2 + columns  the columns' areas, in order

Areas have no stored size: it follows from the descriptor and the number of events, which keeps a short history small.
A read of the first columns fetches and checks the header and their areas, nothing behind them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laser.seqvault.checksum import crc32c_header
from laser.seqvault.jit import kernel

MAGIC = 0xC7
MAX_CHUNK_WORDS = (1 << 14) - 1
HEADER_WORDS = 2
OFFSET, DELTA, LOOKUP, COLD_OFFSET, COLD_DELTA, PLANES_OFFSET, PLANES_DELTA = range(7)
"""Codecs; the last two exist in memory only, for cold areas that have been decompressed."""

ZERO, ONE = np.uint64(0), np.uint64(1)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
LOW = np.uint64(0xFFFFFFFF)


def worst_chunk_words(events: int, columns: int) -> int:
    """Most words that a chunk can take."""
    return HEADER_WORDS + 2 * columns + events * columns


@kernel
def bit_length(value: Any) -> Any:
    """Bits needed for a uint64; 0 for 0."""
    length = 0
    for shift in (32, 16, 8, 4, 2, 1):
        if value >> np.uint64(shift) != ZERO:
            value >>= np.uint64(shift)
            length += shift
    return length + np.int64(value)


@kernel
def words_for(count: int, width: int) -> int:
    """Words of an area of ``count`` values of ``width`` bits."""
    return (count * width + 63) >> 6


@kernel
def mask_of(width: int) -> Any:
    """The lowest ``width`` bits."""
    return ALL if width == 64 else (ONE << np.uint64(width)) - ONE


@kernel
def put(out: np.ndarray, area: int, index: int, width: int, value: Any) -> None:
    """Write one value into a zeroed area; ``value`` must fit ``width`` bits."""
    bit = index * width
    word, shift = area + (bit >> 6), bit & 63
    out[word] |= value << np.uint64(shift)
    if shift + width > 64:
        out[word + 1] |= value >> np.uint64(64 - shift)


@kernel
def get(words: np.ndarray, area: int, index: int, width: int, mask: Any) -> Any:
    """Read one value; touches one word past it, so an arena ends with a spare word."""
    bit = index * width
    word, shift = area + (bit >> 6), np.uint64(bit & 63)
    return ((words[word] >> shift) | ((words[word + 1] << ONE) << (np.uint64(63) - shift))) & mask


@kernel
def describe(codec: int, width: int, second: int, count: int, based: bool) -> Any:
    """Lower half of a column's descriptor."""
    return (
        np.uint64(codec)
        | np.uint64(width) << np.uint64(3)
        | np.uint64(second) << np.uint64(10)
        | np.uint64(count) << np.uint64(17)
        | np.uint64(based) << np.uint64(27)
    )


@kernel
def codec_of(descriptor: Any) -> Any:
    """Codec of a column."""
    return np.int64(descriptor & np.uint64(7))


@kernel
def width_of(descriptor: Any) -> Any:
    """Bits of a packed value."""
    return np.int64((descriptor >> np.uint64(3)) & np.uint64(0x7F))


@kernel
def second_of(descriptor: Any) -> Any:
    """Bits of an exception or of an entry of a table."""
    return np.int64((descriptor >> np.uint64(10)) & np.uint64(0x7F))


@kernel
def listed(descriptor: Any) -> Any:
    """Exceptions, entries of a table, or words of a cold area."""
    return np.int64((descriptor >> np.uint64(17)) & np.uint64(0x3FF))


@kernel
def based(descriptor: Any) -> Any:
    """1 when the area begins with a word that is added to each value."""
    return np.int64((descriptor >> np.uint64(27)) & ONE)


@kernel
def events_of(head: Any) -> Any:
    """Events of a chunk, from its first word."""
    return np.int64((head >> np.uint64(8)) & np.uint64(0x3FF))


@kernel
def area_words(descriptor: Any, events: int) -> Any:
    """Words of a column's area, its base included."""
    codec, count, width = codec_of(descriptor), listed(descriptor), width_of(descriptor)
    words = based(descriptor)
    if codec in (OFFSET, DELTA):
        words += words_for(events, width) + words_for(count, bit_length(np.uint64(events - 1)))
        return words + words_for(count, second_of(descriptor))
    if codec == LOOKUP:
        return words + words_for(count, second_of(descriptor)) + words_for(events, width)
    if codec in (COLD_OFFSET, COLD_DELTA):
        return words + count
    return words + words_for(events, width)


@kernel
def columns_of(head: Any) -> Any:
    """Columns of a chunk, from its first word."""
    return np.int64((head >> np.uint64(18)) & np.uint64(0x3FFF))


@kernel
def prefix_words(words: np.ndarray, top: int, columns: int) -> Any:
    """Words of the header of the chunk at ``top`` and of its first ``columns`` areas."""
    size, events = HEADER_WORDS + columns_of(words[top]), events_of(words[top])
    for column in range(columns):
        size += area_words(words[top + HEADER_WORDS + column], events)
    return size


@kernel
def head_of(words: np.ndarray, top: int, events: int, columns: int) -> Any:
    """What the first word of the chunk at ``top`` must be: magic, events, columns, checksum of the header."""
    head = np.uint64(MAGIC) | np.uint64(events) << np.uint64(8) | np.uint64(columns) << np.uint64(18)
    return head | crc32c_header(head, words, top + 1, top + HEADER_WORDS + columns) << np.uint64(32)
