"""Unpacking all columns of an answer in one call, which gives the interpreter's lock away once.

Legend of shape suffixes: C columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from laser.seqvault.jit import kernel, pointer
from laser.seqvault.pieces import unpack_pieces

COLUMN = np.dtype(
    [
        ("column", np.int64),  # of the chunks
        ("component", np.int64),  # which value of an event
        ("stride", np.int64),  # values of an event
        ("dest", np.int64),  # address of all values
        ("size", np.int64),  # bytes of a value
        ("coded", np.int64),  # whether the column holds codes to be replaced by ids
        ("ids", np.int64),  # address of ids, of the size of values
        ("known", np.int64),  # how many ids there are
    ]
)


def column_of(column: int, component: int, stride: int, dest: np.ndarray, ids: np.ndarray | None) -> tuple[int, ...]:
    """A ``COLUMN``; the arrays must outlive its use."""
    if ids is None:
        return column, component, stride, _address(dest), dest.itemsize, 0, 0, 0
    assert ids.flags.c_contiguous
    assert ids.itemsize == dest.itemsize
    return column, component, stride, _address(dest), dest.itemsize, 1, _address(ids), len(ids)


@kernel
def unpack_columns(
    columns_C: np.ndarray,
    chunk_off: np.ndarray,
    by_chunk: np.ndarray,
    piece_start: np.ndarray,
    piece_stop: np.ndarray,
    piece_dest: np.ndarray,
    arena: np.ndarray,
    offsets: np.ndarray,
    matches: np.ndarray,
    match_off: np.ndarray,
) -> Any:
    """``unpack_pieces`` for columns of any types; returns the first that failed and its chunk, or (-1, -1).

    Args:
        columns_C: ``COLUMN`` [C].
        chunk_off: with what follows as of ``unpack_pieces``.
        by_chunk: see there.
        piece_start: see there.
        piece_stop: see there.
        piece_dest: see there.
        arena: see there.
        offsets: see there.
        matches: see there.
        match_off: see there.
    """
    for index in range(len(columns_C)):
        c = columns_C[index]
        to, ids = pointer(c.dest), pointer(c.ids)
        if c.size == 1:
            bad = unpack_pieces(
                chunk_off, by_chunk, piece_start, piece_stop, piece_dest, arena, offsets, matches, match_off,
                c.column, c.component, c.stride,
                carray(to, 1, np.uint8), c.coded != 0, carray(ids, c.known, np.uint8),
            )  # fmt: skip
        elif c.size == 2:
            bad = unpack_pieces(
                chunk_off, by_chunk, piece_start, piece_stop, piece_dest, arena, offsets, matches, match_off,
                c.column, c.component, c.stride,
                carray(to, 1, np.uint16), c.coded != 0, carray(ids, c.known, np.uint16),
            )  # fmt: skip
        elif c.size == 4:
            bad = unpack_pieces(
                chunk_off, by_chunk, piece_start, piece_stop, piece_dest, arena, offsets, matches, match_off,
                c.column, c.component, c.stride,
                carray(to, 1, np.uint32), c.coded != 0, carray(ids, c.known, np.uint32),
            )  # fmt: skip
        else:
            bad = unpack_pieces(
                chunk_off, by_chunk, piece_start, piece_stop, piece_dest, arena, offsets, matches, match_off,
                c.column, c.component, c.stride,
                carray(to, 1, np.uint64), c.coded != 0, carray(ids, c.known, np.uint64),
            )  # fmt: skip
        if bad >= 0:
            return index, bad
    return -1, -1


def _address(values: np.ndarray) -> int:
    return values.__array_interface__["data"][0]
