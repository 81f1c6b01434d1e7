"""Decoded chunks in memory: filling them from words, and copying from them to where their events are wanted.

Legend of shape suffixes: P pieces (a chunk as one request uses it); Q distinct chunks.
"""

from __future__ import annotations

import numpy as np

from laser.seqvault.decoding import unpack, unpack_ids
from laser.seqvault.index import count_of
from laser.seqvault.jit import kernel, memmove
from laser.seqvault.pieces import events_before


@kernel
def fill_rows(
    places: np.ndarray,
    arena: np.ndarray,
    offsets: np.ndarray,
    addresses: np.ndarray,
    begin: int,
    column: int,
    length: int,
    share: np.ndarray,
    coded: bool,
    ids: np.ndarray,
) -> int:
    """Decode one field of whole chunks; -1, or the first chunk with a code outside ``ids``.

    Args:
        places: uint64 [Q].
        arena: words.
        offsets: int64 [Q].
        addresses: int64 [Q], of memory for each chunk.
        begin: bytes per event of the fields before this one.
        column: the field's first.
        length: its values per event.
        share: unsigned, of its dtype, at least 1024 * ``length``.
        coded: whether chunks hold codes to be replaced by ``ids``, of the dtype of ``share``.
        ids: see ``coded``.
    """
    scratch = np.empty(1024, np.uint64)
    for chunk in range(len(offsets)):
        count = count_of(places[chunk])
        for component in range(length):
            top, at = offsets[chunk], column + component
            if coded:
                if not unpack_ids(arena, top, at, 0, count, share, component, length, scratch, ids):
                    return chunk
            else:
                unpack(arena, top, at, 0, count, share, component, length, scratch)
        memmove(addresses[chunk] + count * begin, share.ctypes.data, count * length * share.itemsize)
    return -1


@kernel
def find_held_stops(
    before: np.ndarray,
    chunk_off: np.ndarray,
    by_chunk: np.ndarray,
    owner: np.ndarray,
    piece_sure: np.ndarray,
    places: np.ndarray,
    addresses: np.ndarray,
    piece_stop: np.ndarray,
) -> None:
    """Events of each piece that lie before the cut; a chunk's times come first in its memory."""
    times = np.empty(1024, np.uint64)
    for chunk in range(len(places)):
        count, known = count_of(places[chunk]), False
        for entry in range(chunk_off[chunk], chunk_off[chunk + 1]):
            piece = by_chunk[entry]
            piece_stop[piece] = count
            if not piece_sure[piece]:
                if not known:
                    memmove(times.ctypes.data, addresses[chunk], count * 8)
                    known = True
                piece_stop[piece] = events_before(times, count, before[owner[piece]])


@kernel
def copy_pieces(
    piece_at: np.ndarray,
    piece_start: np.ndarray,
    piece_stop: np.ndarray,
    piece_dest: np.ndarray,
    places: np.ndarray,
    addresses: np.ndarray,
    begin: int,
    width: int,
    dest: int,
) -> None:
    """One field of all pieces to the memory at ``dest``, of ``width`` bytes an event."""
    for piece in range(len(piece_at)):
        chunk, size = piece_at[piece], (piece_stop[piece] - piece_start[piece]) * width
        source = addresses[chunk] + count_of(places[chunk]) * begin + piece_start[piece] * width
        memmove(dest + piece_dest[piece] * width, source, size)
