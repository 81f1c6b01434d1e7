"""Bulk load: rows of any order, more than fit in memory, cut into parts that do and that have each user once.

Rows that fit are one part. More are spread by a hash of the user over temporary files, which have no names, so that
nothing of them is left whatever happens; each is a part then. Parts keep the order of arrival. One user's rows are
never spread: the longest history must fit in memory.

Legend of shape suffixes: none; arrays here have one row per event.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from laser.seqvault.durable import write_all
from laser.seqvault.exchange import READ_ROWS, ColumnNames, Events, Source, decode
from laser.seqvault.grouping import group_by_user
from laser.seqvault.index import GOLDEN
from laser.seqvault.layout import Layout
from laser.seqvault.overlap import ahead

MEMORY_BYTES = 1 << 30
SORT_BYTES = 32
"""Memory for one row while it is sorted and packed, beside the row and a copy of it."""
SOME_PARTS = 128
"""Parts when the number of rows is not known in advance."""
MOST_PARTS = 512
"""Files open at a time."""
USER = "$user"
"""Name of the users in a row; no field can have it."""
Advance = Callable[[int], None]
Part = tuple[np.ndarray, Events]


def parts_of(
    source: Source, layout: Layout, names: ColumnNames, memory_bytes: int, folder: Path, advance: Advance
) -> Iterator[Part]:
    """Users and events of a source, as parts without a user in common.

    Args:
        source: rows in order of arrival.
        layout: fields of an event.
        names: where the source has them.
        memory_bytes: for the events of a part and what sorting them takes.
        folder: where temporary files may lie.
        advance: called with the number of rows that have been read, and again when the part that has them is done.

    Raises:
        ValueError: when a value does not fit, or the memory is too little for so many rows.
        OSError: when temporary files cannot be written.
    """
    row = _row_type(layout)
    most = memory_bytes // (row.itemsize + SORT_BYTES)
    coming = ahead(decode(batch, layout, names, place) for batch, place in source.batches)
    # Pages that are not written to take no memory.
    rows, size = np.empty(most if source.rows is None else min(most, source.rows), row), 0
    for users, events in coming:
        if size + len(users) > len(rows):
            break
        _fill(rows[size : size + len(users)], users, events)
        size += len(users)
        advance(len(users))
    else:
        if size:
            yield _columns(rows[:size])
            advance(size)
        return
    count = SOME_PARTS if source.rows is None else -(-5 * source.rows // (4 * max(1, most)))
    if count > MOST_PARTS:
        raise ValueError(
            f"memory_bytes is {memory_bytes}, too little for {source.rows} rows; give at least "
            f"{memory_bytes * count // MOST_PARTS}"
        )
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=0)) for _ in range(count)]
        for begin in range(0, size, READ_ROWS):
            _spread(rows[begin : min(begin + READ_ROWS, size)], files)
        del rows
        rest = chain([(users, events)], coming)
        for users, events in rest:
            more = np.empty(len(users), row)
            _fill(more, users, events)
            _spread(more, files)
            advance(len(users))
        for file in files:
            file.seek(0)
            part = np.fromfile(file, row)
            file.close()
            if len(part):
                yield _columns(part)
                advance(len(part))


def by_time(parts: Iterable[Part], time: str) -> Iterator[Part]:
    """Parts with their rows by user, then time, for a vault that treats late events in a way of its own."""
    for users, events in parts:
        order, _, _ = group_by_user(users, events[time])
        yield users[order], {name: values[order] for name, values in events.items()}


def _row_type(layout: Layout) -> np.dtype:
    fields: list[Any] = [(USER, np.uint64), *((f.name, f.dtype, f.shape) for f in layout.fields)]
    return np.dtype(fields)


def _fill(rows: np.ndarray, users: np.ndarray, events: Events) -> None:
    """Events side by side in memory, so that placing one touches one place and not one per field."""
    rows[USER] = users
    for name, values in events.items():
        rows[name] = values


def _columns(rows: np.ndarray) -> Part:
    return np.ascontiguousarray(rows[USER]), {name: rows[name] for name in rows.dtype.names or () if name != USER}


def _spread(rows: np.ndarray, files: list[Any]) -> None:
    """Add rows to the files by a hash of their user."""
    owner = ((((rows[USER] * GOLDEN) >> np.uint64(32)) * np.uint64(len(files))) >> np.uint64(32)).astype(np.uint16)
    order = np.argsort(owner, kind="stable")
    sorted_rows, edges = rows[order], np.searchsorted(owner[order], np.arange(len(files) + 1))
    for file, begin, end in zip(files, edges[:-1], edges[1:]):
        write_all(file.fileno(), sorted_rows[begin:end].view(np.uint8).data)
