"""Ids on their way into a batch: checked, widened, made distinct by table, in one call of compiled code.

One call, because each gives the interpreter's lock away and has to wait for it again beside threads that hold it.
Columns have types of their own, so they are handed over by address; unsigned, for a negative id is then a large one,
and past every limit.

Legend of shape suffixes: C columns; N rows of a column, K ids each; U slices; M rows of all marked tables; S marked
tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from laser.data.packed import ALIGNMENT
from laser.seqvault.jit import kernel, pointer

COLUMN = np.dtype(
    [
        ("ids", np.int64),  # address of ids, K a row
        ("known", np.int64),  # how many there are
        ("size", np.int64),  # bytes of an id
        ("rows", np.int64),  # address of int64 [N], rows of ``ids``; 0: none. Behind the column that fills them
        ("begin", np.int64),  # address of int64 [U], the row of ``ids`` where each slice begins
        ("off", np.int64),  # address of int64 [U + 1], where it goes
        ("slices", np.int64),  # U; 0, and no ``rows``: row by row
        ("count", np.int64),  # N
        ("width", np.int64),  # K
        ("limit", np.uint64),  # every id is below; 0: any value is right
        ("wide", np.int64),  # address of int64 or int32 [N * K], to be filled with the ids
        ("wide_size", np.int64),  # bytes of one of these; int32 only where ``rows`` is 0; 0: they are not wanted
        ("mark", np.int64),  # address of int32, the marks of their table
        ("marks", np.int64),  # how many there are; 0: none
        ("place", np.int64),  # address of int32 [N * K], to be filled with places among the table's distinct ids
    ]
)


@kernel
def fill_columns(
    columns_C: np.ndarray, mark_M: np.ndarray, first_S1: np.ndarray, free: int, count_S: np.ndarray
) -> int:
    """Fill what the columns point to; -1, or the first column with an id out of range.

    Args:
        columns_C: ``COLUMN`` [C].
        mark_M: int32 [M], zeros; becomes the place of each id that occurs, table after table.
        first_S1: int64 [S + 1], where each table begins in ``mark_M``.
        free: address of memory for the distinct ids, int64, ascending, each table's at a multiple of ``ALIGNMENT``.
        count_S: int64 [S], becomes the number of distinct ids of each table.
    """
    for index in range(len(columns_C)):
        column = columns_C[index]
        if column.size == 1:
            sound = _first_pass(column, carray(pointer(column.ids), column.known, np.uint8))
        elif column.size == 2:
            sound = _first_pass(column, carray(pointer(column.ids), column.known, np.uint16))
        elif column.size == 4:
            sound = _first_pass(column, carray(pointer(column.ids), column.known, np.uint32))
        else:
            sound = _first_pass(column, carray(pointer(column.ids), column.known, np.uint64))
        if not sound:
            return index
    for table in range(len(count_S)):
        count_S[table] = _number(mark_M[first_S1[table] : first_S1[table + 1]], free)
        free += -(-count_S[table] * 8 // ALIGNMENT) * ALIGNMENT
    for index in range(len(columns_C)):
        column = columns_C[index]
        if column.size == 1:
            _second_pass(column, carray(pointer(column.ids), column.known, np.uint8))
        elif column.size == 2:
            _second_pass(column, carray(pointer(column.ids), column.known, np.uint16))
        elif column.size == 4:
            _second_pass(column, carray(pointer(column.ids), column.known, np.uint32))
        else:
            _second_pass(column, carray(pointer(column.ids), column.known, np.uint64))
    return -1


@kernel
def _first_pass(column: Any, ids: np.ndarray) -> bool:
    """Check one column, mark its ids if there are marks, and widen them if they are not chosen by rows."""
    mark = carray(pointer(column.mark), column.marks, np.int32)
    if column.rows > 0:
        return _check_rows(column, ids, mark)
    if column.wide_size == 0:
        return True  # its table has been marked and numbered before
    # Loops of their own, for without marks they use vectors.
    for index in range(max(1, column.slices)):
        first, to, count = _slice(column, index)
        part = ids[first : first + count]
        if column.wide_size == 4:
            highest = _widened(part, carray(pointer(column.wide + 4 * to), count, np.int32))
        else:
            highest = _widened(part, carray(pointer(column.wide + 8 * to), count, np.int64))
        if column.limit > 0 and highest >= column.limit and count > 0:
            return False
        if len(mark) > 0:
            _mark(part, mark)
    return True


@kernel
def _slice(column: Any, index: int) -> Any:
    """Where a slice begins in the column's ids, where it goes, and how many ids it has."""
    if column.slices == 0:
        return 0, 0, column.count * column.width
    first = carray(pointer(column.begin), column.slices, np.int64)[index]
    off = carray(pointer(column.off), column.slices + 1, np.int64)
    return first * column.width, off[index] * column.width, (off[index + 1] - off[index]) * column.width


@kernel
def _mark(ids: np.ndarray, mark: np.ndarray) -> None:
    for at in range(len(ids)):
        mark[ids[at]] = 1


@kernel
def _widened(ids: np.ndarray, wide: np.ndarray) -> np.uint64:
    """Copy ids; returns the highest, as unsigned."""
    highest = np.uint64(0)
    for at in range(len(ids)):
        highest = max(highest, np.uint64(ids[at]))
        wide[at] = ids[at]
    return highest


@kernel
def _check_rows(column: Any, ids: np.ndarray, mark: np.ndarray) -> bool:
    rows, width = carray(pointer(column.rows), column.count, np.int64), column.width
    # Each row once, where that takes no more memory than the rows that are asked for.
    known = np.zeros(len(ids) // width if len(ids) <= column.count * width else 0, np.bool_)
    for row in rows:
        if len(known) > 0:
            if known[row]:
                continue
            known[row] = True
        for entry in range(row * width, (row + 1) * width):
            if np.uint64(ids[entry]) >= column.limit:
                return False
            if len(mark) > 0:
                mark[ids[entry]] = 1
    return True


@kernel
def _number(mark: np.ndarray, free: int) -> int:
    """Marks become places; the ids that are marked go to memory at ``free``. Returns how many there are."""
    ids, found = carray(pointer(free), len(mark), np.int64), 0
    for row in range(len(mark)):
        if mark[row]:
            ids[found] = row
            mark[row] = found
            found += 1
    return found


@kernel
def _second_pass(column: Any, ids: np.ndarray) -> None:
    """Places of one column's ids, if there are marks; where they are chosen by rows, the ids too."""
    total, mark = column.count * column.width, carray(pointer(column.mark), column.marks, np.int32)
    place = carray(pointer(column.place), total, np.int32)
    if column.rows == 0:
        for index in range(max(1, column.slices) if len(mark) > 0 else 0):
            first, to, count = _slice(column, index)
            _look_up(ids[first : first + count], mark, place[to : to + count])
        return
    wide = carray(pointer(column.wide), total, np.int64)
    rows, width, at = carray(pointer(column.rows), column.count, np.int64), np.uint64(column.width), np.uint64(0)
    for row in rows:
        first = np.uint64(row) * width
        for entry in range(first, first + width):
            wide[at] = ids[entry]
            if len(mark) > 0:
                place[at] = mark[ids[entry]]
            at += np.uint64(1)


@kernel
def _look_up(ids: np.ndarray, mark: np.ndarray, place: np.ndarray) -> None:
    for at in range(len(ids)):
        place[at] = mark[ids[at]]
