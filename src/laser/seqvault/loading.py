"""Bulk load: rows of any order, more than fit in memory, cut into parts that do and that have each user once.

Rows that fit are one part. More are spread by a hash of the user over temporary files, which have no names, so that
nothing of them is left whatever happens; each is a part then. Parts keep the order of arrival. One user's rows are
never spread: the longest history must fit in memory.

Legend of shape suffixes: N rows of a batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from laser.seqvault.exchange import ColumnNames, Events, Source, decode
from laser.seqvault.index import GOLDEN
from laser.seqvault.layout import Layout

MEMORY_BYTES = 1 << 30
SORT_BYTES = 64
"""Memory for one event while it is sorted and packed, beside itself."""
SOME_PARTS = 128
"""Parts when the number of rows is not known in advance."""
MOST_PARTS = 512
"""Files open at a time."""
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
        advance: called with the number of rows that have been read, or read again.

    Raises:
        ValueError: when a value does not fit, or the memory is too little for so many rows.
        OSError: when temporary files cannot be written.
    """
    most = memory_bytes // (layout.event_bytes + 8 + SORT_BYTES)
    decoded = (decode(batch, layout, names, place) for batch, place in source.batches)
    waiting, size = [], 0
    for part in decoded:
        waiting.append(part)
        size += len(part[0])
        advance(len(part[0]))
        if size > most:
            break
    else:
        if size:
            yield _joined(waiting)
        return
    count = SOME_PARTS if source.rows is None else -(-5 * source.rows // (4 * max(1, most)))
    if count > MOST_PARTS:
        raise ValueError(
            f"memory_bytes is {memory_bytes}, too little for {source.rows} rows; give at least "
            f"{memory_bytes * count // MOST_PARTS}"
        )
    with ExitStack() as stack:
        spill = _Spill(layout, folder, count, stack)
        while waiting:
            spill.add(*waiting.pop(0))
        for users, events in decoded:
            spill.add(users, events)
            advance(len(users))
        for number in range(count):
            users, events = spill.take(number)
            if len(users):
                yield users, events
                advance(len(users))


def _joined(waiting: list[Part]) -> Part:
    users = np.concatenate([users for users, _ in waiting])
    # Column by column, so that only one is in memory twice.
    return users, {name: np.concatenate([events.pop(name) for _, events in waiting]) for name in list(waiting[0][1])}


class _Spill:
    """Rows in temporary files, by a hash of their user."""

    def __init__(self, layout: Layout, folder: Path, count: int, stack: ExitStack) -> None:
        fields: list[Any] = [("$user", np.uint64), *((f.name, f.dtype, f.shape) for f in layout.fields)]
        self._row, self._names = np.dtype(fields), layout.names
        self._files = [stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=0)) for _ in range(count)]

    def add(self, users: np.ndarray, events: Events) -> None:
        """Write N rows."""
        count = np.uint64(len(self._files))
        owner = ((((users * GOLDEN) >> np.uint64(32)) * count) >> np.uint64(32)).astype(np.uint16)
        order = np.argsort(owner, kind="stable")
        rows = np.empty(len(users), self._row)
        rows["$user"] = users[order]
        for name, values in events.items():
            rows[name] = values[order]
        edges = np.searchsorted(owner[order], np.arange(len(self._files) + 1))
        for file, begin, end in zip(self._files, edges[:-1], edges[1:]):
            if end > begin:
                _write_all(file, memoryview(rows[begin:end].view(np.uint8)))

    def take(self, number: int) -> Part:
        """Rows of one file, in order of arrival; the file is closed."""
        file = self._files[number]
        file.seek(0)
        rows = np.fromfile(file, self._row)
        file.close()
        return np.ascontiguousarray(rows["$user"]), {name: rows[name] for name in self._names}


def _write_all(file: Any, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
