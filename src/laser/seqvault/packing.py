"""Packing of chunks of one user's events into words (bits.py says what a chunk looks like; decoding.py reads it).

Codecs: OFFSET (base + packed values, outliers listed apart), DELTA (running sum of packed steps, long steps listed
apart; for the timestamp), LOOKUP (packed codes into a packed, sorted list of the chunk's distinct values).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laser.seqvault.bits import (
    DELTA,
    HEADER_WORDS,
    LOOKUP,
    OFFSET,
    ONE,
    ZERO,
    area_words,
    bit_length,
    describe,
    head_of,
    put,
    words_for,
)
from laser.seqvault.checksum import checksum_of
from laser.seqvault.jit import kernel

TABLE_SIZE = 2048
TABLE_BITS = 11
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@kernel
def _slot(value: Any) -> Any:
    return np.int64((value * GOLDEN) >> np.uint64(64 - TABLE_BITS))


@kernel
def _distinct(values: np.ndarray, limit: int, found: np.ndarray, table: np.ndarray) -> int:
    """Collect distinct values into ``found``; -1 when there are more than ``limit``."""
    table[:] = -1
    count = 0
    for value in values:
        slot = _slot(value)
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
def _put_base(out: np.ndarray, area: int, base: Any, has_base: bool) -> int:
    """Write the base where there is one; returns where values begin."""
    if has_base:
        out[area] = base
        return area + 1
    return area


@kernel
def _pack_lookup(values: np.ndarray, distinct: np.ndarray, table: np.ndarray, out: np.ndarray, area: int) -> Any:
    """Write sorted distinct values, then codes; returns the descriptor."""
    count = len(distinct)
    second, width = bit_length(distinct[-1] - distinct[0]), bit_length(np.uint64(count - 1))
    plain = bit_length(distinct[-1])
    has_base = words_for(count, plain) > words_for(count, second) + 1
    base = distinct[0] if has_base else ZERO
    second = second if has_base else plain
    entries = _put_base(out, area, base, has_base)
    codes = entries + words_for(count, second)
    table[:] = -1
    for code in range(count):
        put(out, entries, code, second, distinct[code] - base)
        slot = _slot(distinct[code])
        while table[slot] >= 0:
            slot = (slot + 1) & (TABLE_SIZE - 1)
        table[slot] = code
    for index in range(len(values)):
        slot = _slot(values[index])
        while distinct[table[slot]] != values[index]:
            slot = (slot + 1) & (TABLE_SIZE - 1)
        put(out, codes, index, width, np.uint64(table[slot]))
    return describe(LOOKUP, width, second, count, has_base)


@kernel
def _best_width(lengths: np.ndarray, count: int) -> Any:
    """Width at which packed values and listed longer ones take least; returns (width, longer, words, longest)."""
    longest, places = 64, bit_length(np.uint64(count - 1))
    while longest > 0 and lengths[longest] == 0:
        longest -= 1
    width, best, longer = longest, words_for(count, longest), 0
    beyond = 0
    for trial in range(longest - 1, -1, -1):
        beyond += lengths[trial + 1]
        size = words_for(count, trial) + words_for(beyond, places) + words_for(beyond, longest)
        if size < best:
            width, best, longer = trial, size, beyond
    return width, longer, best, longest


@kernel
def _put_values(values: np.ndarray, width: int, longer: int, longest: int, out: np.ndarray, area: int) -> None:
    """Packed values (a longer one as 0), positions of the longer ones, then these."""
    places = bit_length(np.uint64(len(values) - 1))
    positions = area + words_for(len(values), width)
    full = positions + words_for(longer, places)
    seen = 0
    for index in range(len(values)):
        if bit_length(values[index]) > width:
            put(out, positions, seen, places, np.uint64(index))
            put(out, full, seen, longest, values[index])
            seen += 1
        else:
            put(out, area, index, width, values[index])


@kernel
def _pack_column(
    values: np.ndarray,
    signed: bool,
    found: np.ndarray,
    table: np.ndarray,
    lengths: np.ndarray,
    scratch: np.ndarray,
    out: np.ndarray,
    area: int,
) -> Any:
    """Pack with the smaller of OFFSET and LOOKUP; returns the descriptor."""
    flip = ONE << np.uint64(63) if signed else ZERO
    low, high = values[0] ^ flip, values[0] ^ flip
    for value in values:
        low, high = min(low, value ^ flip), max(high, value ^ flip)
    count, base = len(values), low ^ flip
    # Without a base, small values are a word shorter; negative ones cannot do without.
    plain = words_for(count, bit_length(high ^ flip))
    has_base = low < flip or plain > words_for(count, bit_length(high - low)) + 1
    base = base if has_base else ZERO
    lengths[:] = 0
    differences = scratch[:count]
    for index in range(count):
        differences[index] = values[index] - base
        lengths[bit_length(differences[index])] += 1
    width, longer, best, longest = _best_width(lengths, count)
    if longer and 16 * best > 15 * words_for(count, longest):
        width, longer, best = longest, 0, words_for(count, longest)  # too little for what reading the list costs
    if width > 2 and count >= 16:
        limit = min(count // 2, 1 << (width - 1)) if width < 16 else count // 2
        size = _distinct(values, limit, found, table)
        if size > 0:
            distinct = np.sort(found[:size])
            second, code = bit_length(distinct[-1] - distinct[0]), bit_length(np.uint64(size - 1))
            if 1 + words_for(size, second) + words_for(count, code) < best + has_base:
                return _pack_lookup(values, distinct, table, out, area)
    _put_values(differences, width, longer, longest, out, _put_base(out, area, base, has_base))
    return describe(OFFSET, width, longest if longer else 0, longer, has_base)


@kernel
def _pack_times(values: np.ndarray, lengths: np.ndarray, scratch: np.ndarray, out: np.ndarray, area: int) -> Any:
    """Pack ascending int64 bit patterns as steps; returns the descriptor."""
    count = len(values)
    lengths[:] = 0
    steps = scratch[:count]
    steps[0] = ZERO
    for index in range(1, count):
        steps[index] = values[index] - values[index - 1]
    for step in steps:
        lengths[bit_length(step)] += 1
    width, longer, _, longest = _best_width(lengths, count)
    out[area] = values[0]
    _put_values(steps, width, longer, longest, out, area + 1)
    return describe(DELTA, width, longest if longer else 0, longer, True)


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
    scratch, lengths = np.empty(1024, np.uint64), np.empty(65, np.int64)
    num_columns = columns.shape[0]
    end = 0
    for chunk in range(len(users)):
        start, stop, top = cuts[chunk], cuts[chunk + 1], end
        places[chunk] = top
        end = top + HEADER_WORDS + num_columns
        for column in range(num_columns):
            values = columns[column, start:stop]
            if column == 0:
                descriptor = _pack_times(values, lengths, scratch, out, end)
            else:
                descriptor = _pack_column(values, signed[column], found, table, lengths, scratch, out, end)
            size = area_words(descriptor, stop - start)
            out[top + HEADER_WORDS + column] = descriptor | checksum_of(out, end, end + size) << np.uint64(32)
            end += size
        out[top + 1] = users[chunk]
        out[top] = head_of(out, top, stop - start, num_columns)
    places[len(users)] = end
    return end
