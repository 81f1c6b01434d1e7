"""Packing of a chunk of one user's events into 8-byte words, and back.

Bit fields are little endian within and across words: value i of width w sits at bit i * w of its area. Everything is
aligned to words because byte-wise loads made the same packing eight times slower to decode.

A chunk, in words (docs/seqvault_format.md has the bits):

    0                 magic and CRC32C of all words after this one
    1                 user
    2                 events, columns, words of the chunk
    3 + 2 c           column c: codec, width, second width, count, words of its area
    4 + 2 c           column c: base
    3 + 2 columns ... the columns' areas, in order

Codecs: OFFSET (base + packed differences), DELTA (running sum of packed steps, long steps listed apart; for the
timestamp), LOOKUP (packed codes into a packed, sorted list of the chunk's distinct values).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laser.seqvault.checksum import crc32c_words
from laser.seqvault.jit import kernel

MAGIC = 0x4B4E4843
MAX_CHUNK_WORDS = (1 << 14) - 1
HEADER_WORDS = 3
OFFSET, DELTA, LOOKUP = 0, 1, 2
TABLE_SIZE = 2048
TABLE_BITS = 11

ZERO, ONE = np.uint64(0), np.uint64(1)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def worst_chunk_words(events: int, columns: int) -> int:
    """Most words that a chunk can take."""
    return HEADER_WORDS + 3 * columns + events * columns


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
def _words(count: int, width: int) -> int:
    return (count * width + 63) >> 6


@kernel
def _mask(width: int) -> Any:
    return ALL if width == 64 else (ONE << np.uint64(width)) - ONE


@kernel
def _put(out: np.ndarray, area: int, index: int, width: int, value: Any) -> None:
    """Write one value into a zeroed area; ``value`` must fit ``width`` bits."""
    bit = index * width
    word, shift = area + (bit >> 6), bit & 63
    out[word] |= value << np.uint64(shift)
    if shift + width > 64:
        out[word + 1] |= value >> np.uint64(64 - shift)


@kernel
def _get(words: np.ndarray, area: int, index: int, width: int, mask: Any) -> Any:
    """Read one value; touches one word past it, so an arena ends with a spare word."""
    bit = index * width
    word, shift = area + (bit >> 6), np.uint64(bit & 63)
    return ((words[word] >> shift) | ((words[word + 1] << ONE) << (np.uint64(63) - shift))) & mask


@kernel
def _describe(codec: int, width: int, second: int, count: int, words: int) -> Any:
    return (
        np.uint64(codec)
        | np.uint64(width) << np.uint64(8)
        | np.uint64(second) << np.uint64(16)
        | np.uint64(count) << np.uint64(24)
        | np.uint64(words) << np.uint64(40)
    )


@kernel
def _distinct(values: np.ndarray, limit: int, found: np.ndarray, table: np.ndarray) -> int:
    """Collect distinct values into ``found``; -1 when there are more than ``limit``."""
    table[:] = -1
    count = 0
    for value in values:
        slot = np.int64((value * GOLDEN) >> np.uint64(64 - TABLE_BITS))
        while table[slot] >= 0 and found[table[slot]] != value:
            slot = (slot + 1) & (TABLE_SIZE - 1)
        if table[slot] < 0:
            if count == limit:
                return -1
            found[count] = value
            table[slot] = count
            count += 1
    return count


@kernel
def _pack_lookup(values: np.ndarray, distinct: np.ndarray, table: np.ndarray, out: np.ndarray, area: int) -> Any:
    """Write sorted distinct values, then codes; returns (descriptor, words)."""
    base, count = distinct[0], len(distinct)
    second, width = bit_length(distinct[-1] - base), bit_length(np.uint64(count - 1))
    codes = area + _words(count, second)
    table[:] = -1
    for code in range(count):
        _put(out, area, code, second, distinct[code] - base)
        slot = np.int64((distinct[code] * GOLDEN) >> np.uint64(64 - TABLE_BITS))
        while table[slot] >= 0:
            slot = (slot + 1) & (TABLE_SIZE - 1)
        table[slot] = code
    for index in range(len(values)):
        value = values[index]
        slot = np.int64((value * GOLDEN) >> np.uint64(64 - TABLE_BITS))
        while distinct[table[slot]] != value:
            slot = (slot + 1) & (TABLE_SIZE - 1)
        _put(out, codes, index, width, np.uint64(table[slot]))
    words = codes - area + _words(len(values), width)
    return _describe(LOOKUP, width, second, count, words), words


@kernel
def _pack_column(
    values: np.ndarray, signed: bool, found: np.ndarray, table: np.ndarray, out: np.ndarray, area: int
) -> Any:
    """Pack with the smaller of OFFSET and LOOKUP; returns (descriptor, base, words)."""
    flip = ONE << np.uint64(63) if signed else ZERO
    low, high = values[0] ^ flip, values[0] ^ flip
    for value in values:
        low, high = min(low, value ^ flip), max(high, value ^ flip)
    count, base, width = len(values), low ^ flip, bit_length(high - low)
    plain = _words(count, width)
    if width > 2 and count >= 16:
        limit = min(count // 2, 1 << (width - 1)) if width < 16 else count // 2
        size = _distinct(values, limit, found, table)
        if size > 0:
            distinct = np.sort(found[:size])
            second, code = bit_length(distinct[-1] - distinct[0]), bit_length(np.uint64(size - 1))
            if _words(size, second) + _words(count, code) < plain:
                descriptor, words = _pack_lookup(values, distinct, table, out, area)
                return descriptor, distinct[0], words
    for index in range(count):
        _put(out, area, index, width, values[index] - base)
    return _describe(OFFSET, width, 0, count, plain), base, plain


@kernel
def _pack_times(values: np.ndarray, steps: np.ndarray, out: np.ndarray, area: int) -> Any:
    """Pack ascending int64 bit patterns as steps; returns (descriptor, base, words).

    Area: packed steps, then positions of the long steps (16 bits each), then their full 64-bit values; in the packed
    part a long step counts as 0.
    """
    count = len(values)
    lengths = np.zeros(65, np.int64)
    for index in range(1, count):
        steps[index] = values[index] - values[index - 1]
        lengths[bit_length(steps[index])] += 1
    width, best, longer = 64, _words(count, 64), 0
    long_steps = 0
    for trial in range(64, -1, -1):
        size = _words(count, trial) + _words(long_steps, 16) + long_steps
        if size < best:
            width, best, longer = trial, size, long_steps
        long_steps += lengths[trial]
    positions = area + _words(count, width)
    full = positions + _words(longer, 16)
    seen = 0
    for index in range(1, count):
        if bit_length(steps[index]) > width:
            _put(out, positions, seen, 16, np.uint64(index))
            out[full + seen] = steps[index]
            seen += 1
        else:
            _put(out, area, index, width, steps[index])
    return _describe(DELTA, width, 0, longer, best), values[0], best


@kernel
def pack_chunks(
    columns: np.ndarray, signed: np.ndarray, users: np.ndarray, cuts: np.ndarray, out: np.ndarray, places: np.ndarray
) -> int:
    """Pack events into consecutive chunks.

    Args:
        columns: uint64 [C, T], the timestamp first and ascending within a chunk.
        signed: bool [C].
        users: uint64 [N], the user of each chunk.
        cuts: int64 [N + 1]; chunk i holds events ``[cuts[i], cuts[i + 1])``, at least one.
        out: uint64, zeroed, at least the sum of ``worst_chunk_words``.
        places: int64 [N + 1], filled with the chunks' starts in ``out``.

    Returns:
        Words written.
    """
    table, found = np.empty(TABLE_SIZE, np.int32), np.empty(1024, np.uint64)
    steps = np.empty(1024, np.uint64)
    num_columns = columns.shape[0]
    end = 0
    for chunk in range(len(users)):
        start, stop, top = cuts[chunk], cuts[chunk + 1], end
        places[chunk] = top
        end = top + HEADER_WORDS + 2 * num_columns
        for column in range(num_columns):
            values = columns[column, start:stop]
            if column == 0:
                descriptor, base, words = _pack_times(values, steps, out, end)
            else:
                descriptor, base, words = _pack_column(values, signed[column], found, table, out, end)
            out[top + HEADER_WORDS + 2 * column] = descriptor
            out[top + HEADER_WORDS + 2 * column + 1] = base
            end += words
        out[top + 1] = users[chunk]
        out[top + 2] = (
            np.uint64(stop - start) | np.uint64(num_columns) << np.uint64(16) | np.uint64(end - top) << np.uint64(32)
        )
        out[top] = np.uint64(MAGIC) | crc32c_words(out, top + 1, end) << np.uint64(32)
    places[len(users)] = end
    return end


@kernel
def _stream(
    words: np.ndarray, area: int, width: int, start: int, stop: int, base: Any, dest: np.ndarray, at: int, stride: int
) -> None:
    """``base`` + values ``[start, stop)`` of an area into ``dest[at::stride]``.

    Holds the current word and takes the next one when it runs out. Positions are unsigned, for numba looks at the sign
    of every signed index; together this is twice as fast as computing each value's place.
    """
    if start >= stop:
        return
    wide, mask, spill = np.uint64(width), _mask(width), np.uint64(64)
    bit = np.uint64(start) * wide
    word, shift = np.uint64(area) + (bit >> np.uint64(6)), bit & np.uint64(63)
    current, position, step = words[word], np.uint64(at), np.uint64(stride)
    for _ in range(stop - start):
        value = current >> shift
        after = shift + wide
        if after >= spill:
            word += ONE
            current = words[word]
            after -= spill
            value |= (current << ONE) << (np.uint64(63) - shift)
        shift = after
        dest[position] = base + (value & mask)
        position += step


@kernel
def unpack(
    words: np.ndarray,
    top: int,
    column: int,
    start: int,
    stop: int,
    dest: np.ndarray,
    at: int,
    stride: int,
    scratch: np.ndarray,
) -> None:
    """Values ``[start, stop)`` of one column of the chunk at word ``top`` into ``dest[at::stride]``.

    ``dest`` is unsigned; values wrap to its size, which restores signed ones. ``scratch`` is uint64 [1024].
    """
    descriptors = top + HEADER_WORDS
    num_columns = np.int64((words[top + 2] >> np.uint64(16)) & np.uint64(0xFFFF))
    area = descriptors + 2 * num_columns
    for other in range(column):
        area += np.int64(words[descriptors + 2 * other] >> np.uint64(40))
    descriptor, base = words[descriptors + 2 * column], words[descriptors + 2 * column + 1]
    codec = np.int64(descriptor & np.uint64(0xFF))
    width = np.int64((descriptor >> np.uint64(8)) & np.uint64(0xFF))
    count = np.int64((descriptor >> np.uint64(24)) & np.uint64(0xFFFF))
    if codec == OFFSET:
        _stream(words, area, width, start, stop, base, dest, at, stride)
    elif codec == LOOKUP:
        second = np.int64((descriptor >> np.uint64(16)) & np.uint64(0xFF))
        codes = area + _words(count, second)
        _stream(words, area, second, 0, count, base, scratch, 0, 1)
        _stream_lookup(words, codes, width, start, stop, scratch, dest, at, stride)
    else:
        positions = area + _words(np.int64(words[top + 2] & np.uint64(0xFFFF)), width)
        _stream(words, area, width, 0, stop, ZERO, scratch, 0, 1)
        _sum_steps(words, positions, count, base, scratch, start, stop, dest, at, stride)


@kernel
def unpack_ids(
    words: np.ndarray,
    top: int,
    column: int,
    start: int,
    stop: int,
    dest: np.ndarray,
    at: int,
    stride: int,
    scratch: np.ndarray,
    ids: np.ndarray,
) -> bool:
    """As ``unpack``, with the values as codes into ``ids``; False when one lies outside.

    A chunk's own table of codes is looked up once, not once per event: ids are spread over memory.
    """
    descriptors = top + HEADER_WORDS
    area = descriptors + 2 * np.int64((words[top + 2] >> np.uint64(16)) & np.uint64(0xFFFF))
    for other in range(column):
        area += np.int64(words[descriptors + 2 * other] >> np.uint64(40))
    descriptor, base = words[descriptors + 2 * column], words[descriptors + 2 * column + 1]
    width = np.int64((descriptor >> np.uint64(8)) & np.uint64(0xFF))
    size, step, position = np.uint64(len(ids)), np.uint64(stride), np.uint64(at)
    if np.int64(descriptor & np.uint64(0xFF)) == LOOKUP:
        second = np.int64((descriptor >> np.uint64(16)) & np.uint64(0xFF))
        count = np.int64((descriptor >> np.uint64(24)) & np.uint64(0xFFFF))
        _stream(words, area, second, 0, count, base, scratch, 0, 1)
        if scratch[np.uint64(count - 1)] >= size:  # the table ascends
            return False
        for index in range(np.uint64(count)):
            scratch[index] = ids[scratch[index]]
        _stream_lookup(words, area + _words(count, second), width, start, stop, scratch, dest, at, stride)
        return True
    _stream(words, area, width, start, stop, base, scratch, 0, 1)
    highest = ZERO
    for index in range(np.uint64(stop - start)):
        highest = max(highest, scratch[index])
    if highest >= size:
        return stop == start
    for index in range(np.uint64(stop - start)):
        dest[position] = ids[scratch[index]]
        position += step
    return True


@kernel
def _stream_lookup(
    words: np.ndarray,
    area: int,
    width: int,
    start: int,
    stop: int,
    values: np.ndarray,
    dest: np.ndarray,
    at: int,
    stride: int,
) -> None:
    """As ``_stream``, with the values as positions in ``values``."""
    if start >= stop:
        return
    wide, mask, spill = np.uint64(width), _mask(width), np.uint64(64)
    bit = np.uint64(start) * wide
    word, shift = np.uint64(area) + (bit >> np.uint64(6)), bit & np.uint64(63)
    current, position, step = words[word], np.uint64(at), np.uint64(stride)
    for _ in range(stop - start):
        value = current >> shift
        after = shift + wide
        if after >= spill:
            word += ONE
            current = words[word]
            after -= spill
            value |= (current << ONE) << (np.uint64(63) - shift)
        shift = after
        dest[position] = values[value & mask]
        position += step


@kernel
def _sum_steps(
    words: np.ndarray,
    positions: int,
    longer: int,
    value: Any,
    steps: np.ndarray,
    start: int,
    stop: int,
    dest: np.ndarray,
    at: int,
    stride: int,
) -> None:
    """Running sum of steps, the long ones filled in from their list; steps before ``stop`` are already unpacked."""
    full = positions + _words(longer, 16)
    for entry in range(longer):
        index = np.int64(_get(words, positions, entry, 16, np.uint64(0xFFFF)))
        if index < stop:
            steps[index] = words[full + entry]
    for index in range(start):
        value += steps[np.uint64(index)]
    position, step = np.uint64(at), np.uint64(stride)
    for index in range(start, stop):
        value += steps[np.uint64(index)]
        dest[position] = value
        position += step
