"""From fetched chunks to columns: which events of each chunk are wanted, and unpacking them to where they are wanted.

Work goes chunk by chunk, not request by request, so that a chunk which several requests use is decoded once.

Legend of shape suffixes: R requests; P pieces (a chunk as one request uses it, newest first within a request);
Q distinct chunks. Pieces of chunk q are ``by_chunk[chunk_off[q] : chunk_off[q + 1]]``.
"""

from __future__ import annotations

import numpy as np

from laser.seqvault.decoding import unpack, unpack_ids
from laser.seqvault.index import count_of
from laser.seqvault.jit import kernel


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
    piece_off: np.ndarray, piece_start: np.ndarray, piece_stop: np.ndarray, ends: np.ndarray, piece_dest: np.ndarray
) -> None:
    """Where each piece goes, when the stored part of request r ends at event ``ends[r]`` of the result."""
    for request in range(len(ends)):
        at = ends[request]
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
    filtered = len(matches) > 0
    for chunk in range(len(offsets)):
        low, high, users, first = 1 << 20, 0, 0, 0
        for entry in range(chunk_off[chunk], chunk_off[chunk + 1]):
            piece = by_chunk[entry]
            if piece_stop[piece] > piece_start[piece]:
                low, high = min(low, piece_start[piece]), max(high, piece_stop[piece])
                users += 1
                first = piece
        if users == 0 or offsets[chunk] < 0:
            continue
        own = match_off[chunk]
        if filtered:
            low, high = np.int64(matches[own + low]), np.int64(matches[own + high - 1]) + 1
        alone = users == 1 and not filtered
        out, at, step = share, 0, 1
        if alone:
            out, at, step = dest, piece_dest[first] * stride + component, stride
        if coded:
            if not unpack_ids(arena, offsets[chunk], column, low, high, out, at, step, scratch, ids):
                return chunk
        else:
            unpack(arena, offsets[chunk], column, low, high, out, at, step, scratch)
        if alone:
            continue
        for entry in range(chunk_off[chunk], chunk_off[chunk + 1]):
            piece = by_chunk[entry]
            position, step = np.uint64(piece_dest[piece] * stride + component), np.uint64(stride)
            for event in range(piece_start[piece], piece_stop[piece]):
                source = np.int64(matches[own + event]) if filtered else event
                dest[position] = share[np.uint64(source - low)]
                position += step
    return -1
