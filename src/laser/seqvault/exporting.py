"""A vault as Arrow record batches or one Parquet file, sorted by user and time; loading it again gives the same vault.

Legend of shape suffixes: U users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from laser.seqvault.layout import Field, user_ids

if TYPE_CHECKING:
    from laser.seqvault.vault import SeqVault

EXPORT_EVENTS = 1 << 18
"""Events of a batch, about; a longer history is a batch of its own."""
GROUP_EVENTS = 1 << 20
"""Events of a row group, about."""


def export_batches(
    vault: SeqVault, *, users: Any = None, user: str = "user", fields: Iterable[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Histories as record batches: users ascending, each one's events by time, ids raw.

    Each history is as of the moment when it is read, which may differ between users while events are appended.

    Args:
        vault: open in any mode.
        users: which users; all by default. Users without events have no rows.
        user: name of the column of users.
        fields: fields to export, all by default.

    Raises:
        ValueError: when a field is unknown, is called like the column of users, or stored data is damaged.
    """
    schema = arrow_schema(vault, user, fields)
    chosen = vault.users() if users is None else np.unique(user_ids(users))
    ends = np.cumsum(vault.lengths(chosen))
    edges = np.flatnonzero(np.diff(ends // EXPORT_EVENTS)) + 1
    for part_U in np.split(chosen, edges):
        found = vault.read(part_U, fields=schema.names[1:])
        columns = [_column(np.repeat(part_U, found.lengths))] + [_column(found[name]) for name in schema.names[1:]]
        if len(columns[0]):
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def arrow_schema(vault: SeqVault, user: str, fields: Iterable[str] | None) -> pa.Schema:
    """Columns of an export.

    Raises:
        ValueError: when a field is unknown or is called like the column of users.
    """
    chosen = vault.layout.choose(fields)
    if user in (field.name for field in chosen):
        raise ValueError(f"the column of users cannot be called {user!r}, which is a field; give it another name")
    return pa.schema([(user, pa.uint64()), *((field.name, _arrow_type(field)) for field in chosen)])


def _arrow_type(field: Field) -> pa.DataType:
    kind = pa.from_numpy_dtype(np.dtype(field.dtype))
    return kind if field.length == 1 else pa.list_(kind, field.length)


def _column(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def export_parquet(
    vault: SeqVault,
    file: Path | str,
    *,
    users: Any = None,
    user: str = "user",
    fields: Iterable[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write histories as one Parquet file, compressed with zstd; it appears when it is complete.

    Args:
        vault: see ``export_batches``, as ``users``, ``user`` and ``fields``.
        file: where to; a file there is replaced.
        users: which users.
        user: name of the column of users.
        fields: fields to export.
        progress: called with a number of events written.

    Returns:
        Events written.

    Raises:
        ValueError: see ``export_batches``; or there is no such folder to write into.
        OSError: when it cannot be written.
    """
    path, written = Path(file), 0
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"cannot write {path}: give the name of a file in a folder that exists")
    temporary = path.with_name(path.name + ".tmp")
    try:
        with parquet.ParquetWriter(temporary, arrow_schema(vault, user, fields), compression="zstd") as writer:
            for group in _gathered(export_batches(vault, users=users, user=user, fields=fields)):
                writer.write_table(group, row_group_size=len(group))
                written += len(group)
                if progress is not None:
                    progress(len(group))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(each) for each in waiting) >= GROUP_EVENTS:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)
