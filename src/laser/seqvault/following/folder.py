"""Events of a folder of Arrow or Parquet files, in order of their names; files appear complete, by being renamed.

A file whose name sorts before one that has been read already is not read any more: name files by a number or a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from laser.seqvault.exchange import ColumnNames, decode
from laser.seqvault.following.sources import Batch
from laser.seqvault.layout import Layout

SUFFIXES = (".parquet", ".arrow")
LOOK_SECONDS = 0.05


class ArrowFolder:
    """A source over ``*.parquet`` and ``*.arrow`` files; a position is a file's name and how many rows of it are read.

    Args:
        path: the folder.
        user: name of the column of users.
        columns: columns of fields that are not called like them, field to column.

    Raises:
        ValueError: when there is no such folder.
    """

    def __init__(self, path: Path, *, user: str = "user", columns: Mapping[str, str] | None = None) -> None:
        if not path.is_dir():
            raise ValueError(f"{path} is no folder; give one in which .parquet or .arrow files appear")
        self._path, self._user, self._columns = path, user, columns
        self._open: tuple[str, int, Iterator[pa.RecordBatch]] | None = None

    def poll(self, layout: Layout, position: Any, most: int, wait_seconds: float) -> Batch | None:
        """See ``EventSource``."""
        names, end = ColumnNames.matching(layout, self._user, self._columns), time.monotonic() + wait_seconds
        while True:
            for name in self._names(position):
                first = position["rows"] if position and position["file"] == name else 0
                batch = self._next(name, first, most)
                if batch is None:
                    continue
                return self._decoded(batch, layout, names, self._path / name, first)
            if time.monotonic() > end:
                return None
            time.sleep(LOOK_SECONDS)

    def _decoded(self, batch: pa.RecordBatch, layout: Layout, names: ColumnNames, file: Path, first: int) -> Batch:
        names.require(batch.schema.names, str(file))
        users, events = decode(batch, layout, names, lambda row: f"{file}, row {first + row}")
        return Batch(users, events, {"file": file.name, "rows": first + len(batch)}, file.stat().st_mtime)

    def lag(self, position: Any) -> dict[str, float]:
        """Files not begun yet, and seconds since the oldest of them appeared."""
        waiting = [name for name in self._names(position) if not position or name != position["file"]]
        since = time.time() - (self._path / waiting[0]).stat().st_mtime if waiting else 0.0
        return {"lag_files": len(waiting), "lag_seconds": max(0.0, since)}

    def close(self) -> None:
        """See ``EventSource``."""
        self._open = None

    def _names(self, position: Any) -> list[str]:
        """Names of files from the position on."""
        present = (file.name for file in self._path.iterdir() if file.suffix in SUFFIXES)
        found = sorted(name for name in present if not name.startswith((".", "_")))
        return [name for name in found if not position or name >= position["file"]]

    def _next(self, name: str, first: int, most: int) -> pa.RecordBatch | None:
        """Up to ``most`` rows of a file from row ``first`` on."""
        if self._open is None or self._open[:2] != (name, first):
            self._open = (name, first, self._rows(name, first, most))
        try:
            batch = next(self._open[2], None)
        except (pa.ArrowException, OSError) as error:
            self._open = None
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{self._path / name} cannot be read ({reason}); replace it; files must appear whole, by being renamed"
            ) from None
        self._open = None if batch is None else (name, first + len(batch), self._open[2])
        return batch

    def _rows(self, name: str, first: int, most: int) -> Iterator[pa.RecordBatch]:
        passed = 0
        for batch in _batches(self._path / name, most):
            begin = max(0, first - passed)
            passed += len(batch)
            for start in range(begin, len(batch), most):
                yield batch.slice(start, min(most, len(batch) - start))


def _batches(file: Path, rows: int) -> Iterator[pa.RecordBatch]:
    if file.suffix == ".parquet":
        with parquet.ParquetFile(file) as opened:
            yield from opened.iter_batches(rows)
        return
    with pa.memory_map(str(file)) as mapped:
        if mapped.read(6) == b"ARROW1":
            mapped.seek(0)
            reader = pa.ipc.open_file(mapped)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
        else:
            mapped.seek(0)
            yield from pa.ipc.open_stream(mapped)
