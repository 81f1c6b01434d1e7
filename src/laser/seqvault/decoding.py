"""Unpacking of chunks: a range of events of one column, as values or as ids by their codes, or single events.

Legend of shape suffixes: P positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laser.seqvault.bits import (
    COLD_DELTA,
    COLD_OFFSET,
    HEADER_WORDS,
    LOOKUP,
    OFFSET,
    ONE,
    PLANES_DELTA,
    PLANES_OFFSET,
    ZERO,
    based,
    bit_length,
    codec_of,
    events_of,
    get,
    listed,
    mask_of,
    prefix_words,
    second_of,
    width_of,
    words_for,
)
from laser.seqvault.jit import kernel


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
    wide, mask, spill = np.uint64(width), mask_of(width), np.uint64(64)
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
    wide, mask, spill = np.uint64(width), mask_of(width), np.uint64(64)
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
def _plane_values(
    words: np.ndarray,
    area: int,
    width: int,
    events: int,
    start: int,
    stop: int,
    base: Any,
    dest: np.ndarray,
    at: int,
    stride: int,
) -> None:
    """As ``_stream`` for an area of byte planes: all lowest bytes, then all second bytes, and so on."""
    for index in range(start, stop):
        value = ZERO
        for plane in range(width >> 3):
            value |= get(words, area, plane * events + index, 8, np.uint64(0xFF)) << np.uint64(8 * plane)
        dest[at + (index - start) * stride] = base + value


@kernel
def _locate(words: np.ndarray, top: int, column: int) -> Any:
    """Descriptor of a column, its base and where its values begin."""
    descriptor, area = words[top + HEADER_WORDS + column], top + prefix_words(words, top, column)
    if based(descriptor):
        return descriptor, words[area], area + 1
    return descriptor, ZERO, area


@kernel
def _stream_column(
    words: np.ndarray,
    descriptor: Any,
    area: int,
    events: int,
    start: int,
    stop: int,
    base: Any,
    dest: np.ndarray,
    at: int,
    stride: int,
) -> None:
    """Values of an OFFSET area, or steps of a DELTA one, in memory's form or the file's, outliers included."""
    codec, width, count = codec_of(descriptor), width_of(descriptor), listed(descriptor)
    if codec in (PLANES_OFFSET, PLANES_DELTA):
        _plane_values(words, area, width, events, start, stop, base, dest, at, stride)
        return
    _stream(words, area, width, start, stop, base, dest, at, stride)
    if count == 0:
        return
    places, second = bit_length(np.uint64(events - 1)), second_of(descriptor)
    positions = area + words_for(events, width)
    full = positions + words_for(count, places)
    for entry in range(count):
        index = np.int64(get(words, positions, entry, places, mask_of(places)))
        if start <= index < stop:
            dest[at + (index - start) * stride] = base + get(words, full, entry, second, mask_of(second))


@kernel
def _unpack_table(words: np.ndarray, descriptor: Any, area: int, base: Any, scratch: np.ndarray) -> int:
    """Distinct values of a LOOKUP area into ``scratch``; returns where the codes begin."""
    count, second = listed(descriptor), second_of(descriptor)
    _stream(words, area, second, 0, count, base, scratch, 0, 1)
    return area + words_for(count, second)


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
    descriptor, base, area = _locate(words, top, column)
    codec, events = codec_of(descriptor), events_of(words[top])
    if codec in (OFFSET, PLANES_OFFSET):
        _stream_column(words, descriptor, area, events, start, stop, base, dest, at, stride)
    elif codec == LOOKUP:
        codes = _unpack_table(words, descriptor, area, base, scratch)
        _stream_lookup(words, codes, width_of(descriptor), start, stop, scratch, dest, at, stride)
    else:
        assert codec not in (COLD_OFFSET, COLD_DELTA)
        _stream_column(words, descriptor, area, events, 0, stop, ZERO, scratch, 0, 1)
        _sum_steps(scratch, base, start, stop, dest, at, stride)


@kernel
def _sum_steps(steps: np.ndarray, value: Any, start: int, stop: int, dest: np.ndarray, at: int, stride: int) -> None:
    for index in range(np.uint64(start)):
        value += steps[index]
    position, step = np.uint64(at), np.uint64(stride)
    for index in range(np.uint64(start), np.uint64(stop)):
        value += steps[index]
        dest[position] = value
        position += step


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
    descriptor, base, area = _locate(words, top, column)
    size, step, position = np.uint64(len(ids)), np.uint64(stride), np.uint64(at)
    if codec_of(descriptor) == LOOKUP:
        codes = _unpack_table(words, descriptor, area, base, scratch)
        count = listed(descriptor)
        if scratch[np.uint64(count - 1)] >= size:  # the table ascends
            return False
        for index in range(np.uint64(count)):
            scratch[index] = ids[scratch[index]]
        _stream_lookup(words, codes, width_of(descriptor), start, stop, scratch, dest, at, stride)
        return True
    _stream_column(words, descriptor, area, events_of(words[top]), start, stop, base, scratch, 0, 1)
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
def unpack_at(
    words: np.ndarray, top: int, column: int, positions: np.ndarray, count: int, dest: np.ndarray, scratch: np.ndarray
) -> None:
    """Values of the events at ``positions[:count]``, ascending, of one column into ``dest[:count]`` (uint64).

    Looks at these events only, but for the timestamp's running sum. ``scratch`` is uint64 [1024].
    """
    descriptor, base, area = _locate(words, top, column)
    codec, events, width = codec_of(descriptor), events_of(words[top]), width_of(descriptor)
    if codec == LOOKUP:
        codes = _unpack_table(words, descriptor, area, base, scratch)
        for index in range(count):
            dest[index] = scratch[get(words, codes, positions[index], width, mask_of(width))]
    elif codec == OFFSET and listed(descriptor) == 0:
        for index in range(count):
            dest[index] = base + get(words, area, positions[index], width, mask_of(width))
    elif count > 0:
        stop = positions[count - 1] + 1
        if codec in (OFFSET, PLANES_OFFSET):
            _stream_column(words, descriptor, area, events, 0, stop, base, scratch, 0, 1)
        else:
            _stream_column(words, descriptor, area, events, 0, stop, ZERO, scratch, 0, 1)
            _sum_steps(scratch, base, 0, stop, scratch, 0, 1)
        for index in range(count):
            dest[index] = scratch[positions[index]]
