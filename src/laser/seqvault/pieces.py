"""From fetched chunks to columns: which events of each chunk are wanted, and unpacking them to where they are wanted.

Work goes chunk by chunk, not request by request, so that a chunk which several requests use is decoded once.

Legend of shape suffixes: R requests; P pieces (a chunk as one request uses it, newest first within a request);
Q distinct chunks. Pieces of chunk q are ``by_chunk[chunk_off[q] : chunk_off[q + 1]]``.
"""

from __future__ import annotations

import numpy as np

from laser.seqvault.decoding import unpack, unpack_at, unpack_ids
from laser.seqvault.index import count_of
from laser.seqvault.jit import kernel

SPARSE = 4
"""Matches are unpacked one by one when there are so many times as many events from the first to the last."""


@kernel
def group_pieces(
    piece_off: np.ndarray, piece_at: np.ndarray, chunk_off: np.ndarray, by_chunk: np.ndarray, owner: np.ndarray
) -> None:
    """Pieces by chunk, and the request that each belongs to; ``chunk_off`` is zeroed."""
    for piece in range(len(piece_at)):
        chunk_off[piece_at[piece] + 1] += 1
    for chunk in range(len(chunk_off) - 1):
        chunk_off[chunk + 1] += chunk_off[chunk]
    free = chunk_off[:-1].copy()
    for request in range(len(piece_off) - 1):
        for piece in range(piece_off[request], piece_off[request + 1]):
            owner[piece] = request
            chunk = piece_at[piece]
            by_chunk[free[chunk]] = piece
            free[chunk] += 1


@kernel
def find_stops(
    before: np.ndarray,
    chunk_off: np.ndarray,
    by_chunk: np.ndarray,
    owner: np.ndarray,
    piece_sure: np.ndarray,
    places: np.ndarray,
    arena: np.ndarray,
    offsets: np.ndarray,
    piece_stop: np.ndarray,
) -> None:
    """Events of each piece that lie before the cut; chunks without words in the arena (offset -1) are passed over."""
    times, scratch = np.empty(1024, np.uint64), np.empty(1024, np.uint64)
    for chunk in range(len(offsets)):
        if offsets[chunk] < 0:
            continue
        count, known = count_of(places[chunk]), False
        for entry in range(chunk_off[chunk], chunk_off[chunk + 1]):
            piece = by_chunk[entry]
            piece_stop[piece] = count
            if not piece_sure[piece]:
                if not known:
                    unpack(arena, offsets[chunk], 0, 0, count, times, 0, 1, scratch)
                    known = True
                piece_stop[piece] = events_before(times, count, before[owner[piece]])


@kernel
def events_before(times: np.ndarray, count: int, cut: int) -> int:
    """How many of the first ``count`` ascending times (int64 bit patterns) lie before a cut."""
    low, high = 0, count
    while low < high:
        middle = (low + high) >> 1
        if np.int64(times[middle]) < cut:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def choose_starts(
    wanted: np.ndarray, piece_off: np.ndarray, piece_start: np.ndarray, piece_stop: np.ndarray, stored: np.ndarray
) -> None:
    """First event of each piece so that a request gets at most what it wants, and what it gets."""
    for request in range(len(wanted)):
        missing = wanted[request]
        for piece in range(piece_off[request], piece_off[request + 1]):
            piece_start[piece] = max(0, piece_stop[piece] - missing)
            missing -= piece_stop[piece] - piece_start[piece]
        stored[request] = wanted[request] - missing


@kernel
def place_pieces(
    piece_off: np.ndarray,
    piece_start: np.ndarray,
    piece_stop: np.ndarray,
    begin: np.ndarray,
    stored: np.ndarray,
    piece_dest: np.ndarray,
) -> None:
    """Where each piece goes, when the ``stored[r]`` events of request r begin at event ``begin[r]`` of the result."""
    for request in range(len(begin)):
        at = begin[request] + stored[request]
        for piece in range(piece_off[request], piece_off[request + 1]):
            at -= piece_stop[piece] - piece_start[piece]
            piece_dest[piece] = at


@kernel
def unpack_pieces(
    chunk_off: np.ndarray,
    by_chunk: np.ndarray,
    piece_start: np.ndarray,
    piece_stop: np.ndarray,
    piece_dest: np.ndarray,
    arena: np.ndarray,
    offsets: np.ndarray,
    matches: np.ndarray,
    match_off: np.ndarray,
    column: int,
    component: int,
    stride: int,
    dest: np.ndarray,
    coded: bool,
    ids: np.ndarray,
) -> int:
    """One column of all pieces into ``dest``; -1, or the first chunk with a code outside ``ids``.

    Args:
        chunk_off: int64 [Q + 1]; with ``by_chunk`` int64 [P] the pieces of each chunk.
        by_chunk: see ``chunk_off``.
        piece_start: int64 [P], first event of a piece; with ``matches``, its position among the chunk's matches.
        piece_stop: int64 [P], the end.
        piece_dest: int64 [P], the event of ``dest`` where a piece begins.
        arena: words.
        offsets: int64 [Q], -1 for chunks that are not in the arena and passed over.
        matches: uint16, positions of matching events, chunk by chunk; empty when all events match.
        match_off: int64 [Q], where a chunk's matches begin.
        column: of the chunks.
        component: which value of an event, of ``stride`` values.
        stride: see ``component``.
        dest: unsigned, flat.
        coded: whether the column holds codes to be replaced by ``ids``, of the dtype of ``dest``.
        ids: see ``coded``.
    """
    scratch, share = np.empty(1024, np.uint64), np.empty(1024, dest.dtype)
    for chunk in range(len(offsets)):
        low, high, users, first = _extent(chunk_off, by_chunk, piece_start, piece_stop, chunk)
        if users == 0 or offsets[chunk] < 0:
            continue
        top, sound = offsets[chunk], True
        alone = users == 1 and len(matches) == 0
        out, at, step = share, 0, 1
        if alone:
            out, at, step = dest, piece_dest[first] * stride + component, stride
        if len(matches) > 0:
            chosen = matches[match_off[chunk] + low : match_off[chunk] + high]
            sound = _unpack_matches(arena, top, column, chosen, share, coded, ids, scratch)
        elif coded:
            sound = unpack_ids(arena, top, column, low, high, out, at, step, scratch, ids)
        else:
            unpack(arena, top, column, low, high, out, at, step, scratch)
        if not sound:
            return chunk
        if alone:
            continue
        for entry in range(chunk_off[chunk], chunk_off[chunk + 1]):
            piece = by_chunk[entry]
            position = np.uint64(piece_dest[piece] * stride + component)
            for event in range(piece_start[piece], piece_stop[piece]):
                dest[position] = share[np.uint64(event - low)]
                position += np.uint64(stride)
    return -1


@kernel
def _extent(
    chunk_off: np.ndarray, by_chunk: np.ndarray, piece_start: np.ndarray, piece_stop: np.ndarray, chunk: int
) -> tuple[int, int, int, int]:
    """First and last event of a chunk that its pieces want, how many pieces want any, and the last such piece."""
    low, high, users, found = 1 << 20, 0, 0, 0
    for entry in range(chunk_off[chunk], chunk_off[chunk + 1]):
        piece = by_chunk[entry]
        if piece_stop[piece] > piece_start[piece]:
            low, high = min(low, piece_start[piece]), max(high, piece_stop[piece])
            users += 1
            found = piece
    return low, high, users, found


@kernel
def _unpack_matches(
    arena: np.ndarray,
    top: int,
    column: int,
    chosen: np.ndarray,
    share: np.ndarray,
    coded: bool,
    ids: np.ndarray,
    scratch: np.ndarray,
) -> bool:
    """Values of the events at ascending positions ``chosen`` into ``share``; False on a code outside ``ids``."""
    count, begin = len(chosen), np.int64(chosen[0])
    end = np.int64(chosen[-1]) + 1
    if SPARSE * count < end - begin:
        values = np.empty(count, np.uint64)
        unpack_at(arena, top, column, chosen, count, values, scratch)
        for index in range(count):
            if coded and values[index] >= np.uint64(len(ids)):
                return False
            share[index] = ids[values[index]] if coded else values[index]
        return True
    if coded:
        if not unpack_ids(arena, top, column, begin, end, share, 0, 1, scratch, ids):
            return False
    else:
        unpack(arena, top, column, begin, end, share, 0, 1, scratch)
    for index in range(count):
        share[index] = share[np.int64(chosen[index]) - begin]
    return True
