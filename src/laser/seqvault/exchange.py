"""Arrow tables in and out: columns to event arrays with every value checked, and where in which file a bad one is.

Legend of shape suffixes: N rows of a record batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as dataset
import pyarrow.parquet as parquet

from laser.seqvault.layout import Layout

READ_ROWS = 1 << 18
"""Rows decoded at a time."""
Place = Callable[[int], str]
"""From a row of a batch to words that tell where it stands in its source."""
Events = dict[str, np.ndarray]


@dataclass(frozen=True)
class ColumnNames:
    """Which columns hold the users and, by field name, the events."""

    user: str
    of: dict[str, str]

    @classmethod
    def matching(cls, layout: Layout, user: str, columns: Mapping[str, str] | None) -> ColumnNames:
        """Columns named like their fields, but for those in ``columns`` (field to column).

        Raises:
            ValueError: when ``columns`` names what is no field.
        """
        if unknown := sorted(set(columns or {}) - set(layout.names)):
            raise ValueError(
                f"columns are given for {', '.join(unknown)}; the vault's fields are {', '.join(layout.names)}"
            )
        return cls(user, {name: name for name in layout.names} | dict(columns or {}))

    @property
    def all(self) -> list[str]:
        """Names of all columns, the user's first, none twice."""
        return list(dict.fromkeys([self.user, *self.of.values()]))

    def require(self, found: Iterable[str], where: str) -> None:
        """Raise a ValueError when a column is missing."""
        names = list(found)
        if missing := [name for name in self.all if name not in names]:
            raise ValueError(
                f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(names)}: "
                f"say which columns to take for the user and for the fields"
            )


def decode(batch: pa.RecordBatch, layout: Layout, names: ColumnNames, place: Place) -> tuple[np.ndarray, Events]:
    """Users, uint64 [N], and events of a record batch in the vault's own types.

    Raises:
        ValueError: on a missing value or one that its field cannot hold; names place and column.
    """
    users = _values(batch.column(names.user), np.dtype(np.uint64), 1, names.user, place)
    events = {}
    for field in layout.fields:
        column = names.of[field.name]
        values = _values(batch.column(column), np.dtype(field.dtype), field.length, column, place)
        events[field.name] = values.reshape(-1, *field.shape)
    return users, events


def _values(column: Any, dtype: np.dtype, length: int, name: str, place: Place) -> np.ndarray:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{place(row)} has no value in column {name!r}; fill or drop such rows")
    if length > 1:
        column = _flattened(column, length, name, place)
    kind = column.type
    if pa.types.is_temporal(kind):
        column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"column {name!r} at {place(0)} holds {kind} values; expected numbers that fit {dtype}")
    found = column.to_numpy(zero_copy_only=False)
    bad = _unfit(found, dtype)
    if bad >= 0:
        row = bad // length
        raise ValueError(
            f"{place(row)} has {found[bad]} in column {name!r}, which does not fit {dtype}; correct it, or create the "
            f"vault with a wider type"
        )
    return np.ascontiguousarray(found.astype(dtype, copy=False))


def _flattened(column: Any, length: int, name: str, place: Place) -> Any:
    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise ValueError(f"column {name!r} at {place(0)} holds {kind} values; expected lists of {length}")
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if (wrong := np.flatnonzero(lengths != length)).size:
        row = int(wrong[0])
        raise ValueError(f"{place(row)} has {lengths[row]} values in column {name!r}; expected lists of {length}")
    flat = column.flatten()
    if flat.null_count:
        row = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0]) // length
        raise ValueError(f"{place(row)} has a list with a missing value in column {name!r}; fill or drop such rows")
    return flat


def _unfit(values: np.ndarray, dtype: np.dtype) -> int:
    """Position of the first value that ``dtype`` cannot hold, or -1."""
    if values.dtype == dtype or not len(values):
        return -1
    if dtype.kind == "f":
        if values.dtype.kind != "f":
            return -1
        with np.errstate(over="ignore"):
            wrong = np.isfinite(values) & ~np.isfinite(values.astype(dtype))
    else:
        limits = np.iinfo(dtype)
        if values.dtype.kind == "f":
            # The largest integers are no floats, so that the bound itself does not fit.
            wrong = ~((values >= limits.min) & (values < float(limits.max) + 1) & (values == np.trunc(values)))
        elif int(values.min()) >= limits.min and int(values.max()) <= limits.max:
            return -1
        else:
            wrong = (values < limits.min) | (values > limits.max)
    return int(np.argmax(wrong)) if wrong.any() else -1


@dataclass(frozen=True)
class Source:
    """Rows to read: how many, if known, and record batches with the place of their rows."""

    rows: int | None
    batches: Iterator[tuple[pa.RecordBatch, Place]]


def open_source(source: Any, names: ColumnNames) -> Source:
    """Rows of Parquet files, of a folder of such, of an Arrow table, data set or reader, or of record batches.

    Raises:
        ValueError: when there is nothing to read, or a file is no Parquet or lacks a column.
    """
    if isinstance(source, str | Path):
        return _open_files(_files_in(Path(source)), names)
    if isinstance(source, list | tuple) and source and all(isinstance(each, str | Path) for each in source):
        return _open_files([file for each in source for file in _files_in(Path(each))], names)
    if isinstance(source, pa.Table | pa.RecordBatchReader | dataset.Dataset):
        names.require(source.schema.names, "the source")
    if isinstance(source, pa.Table):
        return Source(len(source), _placed(source.select(names.all).to_batches(READ_ROWS), names))
    if isinstance(source, dataset.Dataset):
        return Source(source.count_rows(), _placed(source.to_batches(columns=names.all, batch_size=READ_ROWS), names))
    return Source(None, _placed(source, names))


def _placed(batches: Iterable[pa.RecordBatch], names: ColumnNames) -> Iterator[tuple[pa.RecordBatch, Place]]:
    first = 0
    for batch in batches:
        names.require(batch.schema.names, "a record batch of the source")
        yield batch, _row_of("the source", first)
        first += batch.num_rows


def _row_of(where: str, first: int) -> Place:
    return lambda row: f"{where}, row {first + row}"


def _files_in(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith(("_", ".")))
    if not found:
        raise ValueError(f"{path} holds no .parquet files; give the folder or the files that do")
    return found


def _open_files(files: list[Path], names: ColumnNames) -> Source:
    rows = 0
    for file in files:
        try:
            metadata = parquet.read_metadata(file)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as Parquet ({_first_line(error)}); check the path") from None
        names.require(metadata.schema.to_arrow_schema().names, str(file))
        rows += metadata.num_rows
    return Source(rows, _file_batches(files, names))


def _file_batches(files: list[Path], names: ColumnNames) -> Iterator[tuple[pa.RecordBatch, Place]]:
    for file in files:
        with parquet.ParquetFile(file, pre_buffer=True) as opened:
            for group in range(opened.num_row_groups):
                first = 0
                for batch in _group_batches(opened, file, group, names):
                    yield batch, _row_of(f"{file}, row group {group}", first)
                    first += batch.num_rows


def _group_batches(opened: parquet.ParquetFile, file: Path, group: int, names: ColumnNames) -> Iterator[pa.RecordBatch]:
    batches = opened.iter_batches(READ_ROWS, row_groups=[group], columns=names.all)
    while True:
        try:
            batch = next(batches, None)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} is damaged in row group {group} ({_first_line(error)}); write it again") from None
        if batch is None:
            return
        yield batch


def read_pairs(file: Path, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of a Parquet file.

    Raises:
        ValueError: when it is no Parquet, lacks a column, or values are missing.
    """
    names = ColumnNames(first, {second: second})
    _open_files([file], names)
    table = parquet.read_table(file, columns=names.all)
    for name, column in zip(table.column_names, table.columns):
        if column.null_count:
            raise ValueError(f"{file} has {column.null_count} missing values in column {name!r}; fill or drop them")
    return table[first].to_numpy(), table[second].to_numpy()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
