"""Cold chunks: columns of a user's older chunks, which reads of the newest events seldom reach, compressed by zstd.

A cold area is one zstd frame of byte planes: the lowest bytes of all values, then all second bytes, and so on. Bytes of
the same significance are alike, which zstd makes more of than of packed bits. Reading expands such chunks in memory to
areas of plain byte planes, which decoding.py knows as codecs of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zstandard

from laser.seqvault.bits import (
    COLD_DELTA,
    COLD_OFFSET,
    DELTA,
    HEADER_WORDS,
    PLANES_DELTA,
    PLANES_OFFSET,
    area_words,
    based,
    bit_length,
    codec_of,
    describe,
    events_of,
    head_of,
    listed,
    prefix_words,
    width_of,
    words_for,
)
from laser.seqvault.checksum import checksum_of
from laser.seqvault.decoding import unpack
from laser.seqvault.jit import kernel

LEVEL = 15
"""Lower levels prefer chance repetitions in a thousand values to shorter codes for frequent ones."""
MARGIN = 0.9
"""A column becomes cold when it takes at most this part of its packed size."""


@kernel
def is_cold(descriptor: Any) -> bool:
    """Whether a column's area is compressed."""
    codec = codec_of(descriptor)
    return codec in (COLD_OFFSET, COLD_DELTA)


@kernel
def _expand(
    words: np.ndarray, top: int, columns: int, out: np.ndarray, at: int, frames: np.ndarray, planes: np.ndarray
) -> Any:
    """Copy a chunk's first columns to ``out[at:]``, leaving room for the planes of cold ones.

    Fills per cold column the frame's and the planes' first byte and how many there are; returns (cold columns, end).
    """
    events, cold = events_of(words[top]), 0
    area, end = top + prefix_words(words, top, 0), at + prefix_words(words, top, 0)
    out[at:end] = words[top:area]
    for column in range(columns):
        descriptor = words[top + HEADER_WORDS + column]
        size = area_words(descriptor, events)
        if is_cold(descriptor):
            codec = PLANES_DELTA if codec_of(descriptor) == COLD_DELTA else PLANES_OFFSET
            width, base = width_of(descriptor), based(descriptor)
            out[end] = words[area]
            frames[cold, 0], frames[cold, 1] = 8 * (area + base), 8 * listed(descriptor)
            planes[cold, 0], planes[cold, 1] = 8 * (end + base), events * (width >> 3)
            cold += 1
            out[at + HEADER_WORDS + column] = describe(codec, width, 0, 0, base == 1)
            end += base + words_for(events, width)
        else:
            out[end : end + size] = words[area : area + size]
            end += size
        area += size
    return cold, end


@kernel
def _expanded_words(words: np.ndarray, offsets: np.ndarray, columns: int, sizes: np.ndarray) -> int:
    """Words of each chunk's expanded form, 0 for chunks without cold columns; returns their sum."""
    total = 0
    for index in range(len(offsets)):
        top, cold = offsets[index], False
        events, size = events_of(words[top]), prefix_words(words, top, 0)
        for column in range(columns):
            descriptor = words[top + HEADER_WORDS + column]
            if is_cold(descriptor):
                cold = True
                size += based(descriptor) + words_for(events, width_of(descriptor))
            else:
                size += area_words(descriptor, events)
        sizes[index] = size if cold else 0
        total += sizes[index]
    return total


@kernel
def _expand_all(
    words: np.ndarray,
    offsets: np.ndarray,
    sizes: np.ndarray,
    columns: int,
    out: np.ndarray,
    frames: np.ndarray,
    planes: np.ndarray,
) -> int:
    """All words to ``out``, and ``_expand`` behind them for chunks with cold columns; returns how many these are."""
    out[: len(words)] = words
    end, cold = len(words), 0
    for index in range(len(offsets)):
        if sizes[index]:
            top, offsets[index] = offsets[index], end
            count, end = _expand(words, top, columns, out, end, frames[cold:], planes[cold:])
            cold += count
    return cold


@kernel
def _scatter(values: np.ndarray, planes: np.ndarray, memory: np.ndarray) -> None:
    """Put runs of bytes where they belong."""
    first = 0
    for index in range(len(planes)):
        place, length = planes[index]
        memory[place : place + length] = values[first : first + length]
        first += length


def thaw(arena: np.ndarray, offsets: np.ndarray, columns: int) -> np.ndarray:
    """The arena with chunks whose first ``columns`` hold cold ones expanded behind its end; ``offsets`` follow them."""
    sizes = np.empty(len(offsets), np.int64)
    more = _expanded_words(arena, offsets, columns, sizes)
    if not more:
        return arena
    expanded = np.empty(len(arena) + more + 2, np.uint64)
    frames, planes = (np.empty((len(offsets) * columns, 2), np.int64) for _ in range(2))
    cold = _expand_all(arena, offsets, sizes, columns, expanded, frames, planes)
    # One call for all frames: one for each would take the interpreter lock, which others want, hundreds of times.
    packed = zstandard.BufferWithSegments(arena.data.cast("B"), frames[:cold].tobytes())
    found: Any = zstandard.ZstdDecompressor().multi_decompress_to_buffer(packed)  # type: ignore[arg-type]
    values = np.frombuffer(b"".join(found), np.uint8)
    assert len(values) == planes[:cold, 1].sum(), "a frame does not hold its column"
    _scatter(values, planes[:cold], expanded.view(np.uint8))
    return expanded


def chill(packed: np.ndarray, places: np.ndarray, cold: np.ndarray, num_columns: int) -> np.ndarray:
    """Pack consecutive chunks again, with zstd where that saves room.

    Args:
        packed: words of the chunks.
        places: int64 [Q + 1], where they begin and end; changed to where they do afterwards.
        cold: bool [Q], the chunks concerned.
        num_columns: columns of a chunk.

    Returns:
        The words of all chunks.
    """
    compress, parts, end = zstandard.ZstdCompressor(LEVEL, write_content_size=True).compress, [], 0
    scratch, spared = np.empty(1024, np.uint64), np.append(packed, np.zeros(2, np.uint64))
    starts = places.copy()
    for index, is_chosen in enumerate(cold):
        chunk = packed[starts[index] : starts[index + 1]]
        if is_chosen:
            chunk = _chilled(spared, int(starts[index]), num_columns, compress, scratch)
        parts.append(chunk)
        places[index] = end
        end += len(chunk)
    places[len(cold)] = end
    return np.concatenate(parts) if parts else packed


def _chilled(words: np.ndarray, top: int, num_columns: int, compress: Any, scratch: np.ndarray) -> np.ndarray:
    """One chunk with the columns compressed for which that pays."""
    events, areas = events_of(words[top]), []
    header = words[top : top + HEADER_WORDS + num_columns].copy()
    area = top + len(header)
    for column in range(num_columns):
        descriptor = words[top + HEADER_WORDS + column]
        end = area + area_words(descriptor, events)
        codec, width, base, planes = _planes(words, top, column, events, scratch)
        frame = compress(planes) if width else b""
        count = -(-len(frame) // 8)
        if width and base + count <= MARGIN * (end - area):
            found = np.zeros(base + count, np.uint64)
            if base:
                found[0] = scratch[0]
            found[base:].view(np.uint8)[: len(frame)] = np.frombuffer(frame, np.uint8)
            lower = describe(codec, width, 0, count, base)
            header[HEADER_WORDS + column] = lower | checksum_of(found, 0, len(found)) << np.uint64(32)
            areas.append(found)
        else:
            areas.append(words[area:end])
        area = end
    header[0] = head_of(header, 0, events, num_columns)
    return np.concatenate([header, *areas])


def _planes(words: np.ndarray, top: int, column: int, events: int, scratch: np.ndarray) -> tuple[int, int, bool, bytes]:
    """Codec, width, whether there is a base (then in ``scratch[0]``), and the bytes of one column, plane by plane."""
    values = np.empty(events, np.uint64)
    unpack(words, top, column, 0, events, values, 0, 1, scratch)
    if codec_of(words[top + HEADER_WORDS + column]) == DELTA:
        codec, base = COLD_DELTA, values[0]
        values = np.diff(values, prepend=values[:1])
    else:
        codec, base = COLD_OFFSET, values.view(np.int64).min().view(np.uint64)
        values -= base
    scratch[0] = base
    width = -(-int(bit_length(values.max())) // 8)
    planes = np.ascontiguousarray(values.view(np.uint8).reshape(events, 8)[:, :width].T)
    return codec, 8 * width, bool(base), planes.tobytes()
