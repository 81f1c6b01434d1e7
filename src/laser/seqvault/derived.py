"""Derived fields: what follows from an event's id (an item's author) is kept once for each id, not in each event.

A read unpacks the id's column with the table's values in the place of ids, so such a field costs as much as an id and
takes no room in the segments. Its values are those of now: what must be as it was at the time of the event belongs into
the event.

A table is a file that is replaced as a whole: 64 bytes (magic, version, CRC32C of all that follows this field, rows,
bytes of a row), the ids in ascending order (8 bytes each), then the values.

Legend of shape suffixes: I ids; C codes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from laser.seqvault.checksum import crc32c
from laser.seqvault.dictionary import Dictionary
from laser.seqvault.durable import write_all
from laser.seqvault.layout import DerivedField, Layout, coerce_values

VERSION = 1
HEADER = struct.Struct("<8sIIQQ32x")
MAGIC = b"LASERTAB"


def file_name(number: int) -> str:
    """Name of a table's file."""
    return f"table-{number:08d}.tab"


@dataclass(frozen=True)
class Table:
    """Values of a derived field by id.

    Args:
        field: what it holds.
        ids: uint64 [I], ascending: the bits of the ids.
        values: the field's dtype [I, length].
    """

    field: DerivedField
    ids: np.ndarray
    values: np.ndarray

    @classmethod
    def empty(cls, field: DerivedField) -> Table:
        """A table that gives 0 for every id."""
        return cls(field, np.empty(0, np.uint64), np.empty((0, field.length), field.dtype))

    def updated(self, ids: np.ndarray, values: np.ndarray) -> Table:
        """With more ids or other values; of an id that comes twice the last one counts."""
        every = np.concatenate([self.ids, ids])
        # The first of each id in the reversed order is the last that was given.
        distinct, first = np.unique(every[::-1], return_index=True)
        given = np.concatenate([self.values, values.reshape(-1, self.field.length)])
        return replace(self, ids=distinct, values=given[len(every) - 1 - first])

    def save(self, folder: Path, number: int) -> None:
        """Write the table durably. Until a manifest names it, the file does not count.

        Raises:
            OSError: when it cannot be written.
        """
        data = self.ids.astype("<u8").tobytes() + np.ascontiguousarray(self.values).tobytes()
        bare = HEADER.pack(MAGIC, VERSION, 0, len(self.ids), self._row_bytes)
        head = HEADER.pack(MAGIC, VERSION, crc32c(bare[16:] + data), len(self.ids), self._row_bytes)
        path = folder / file_name(number)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(file, head + data)
            os.fsync(file)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)

    @classmethod
    def load(cls, field: DerivedField, path: Path) -> Table:
        """Read a table.

        Raises:
            ValueError: when the file is damaged or of another version.
            FileNotFoundError: when it is missing.
        """
        data, table = path.read_bytes(), cls.empty(field)
        if len(data) >= HEADER.size and data[:8] == MAGIC:
            _, version, checksum, rows, row_bytes = HEADER.unpack_from(data)
            if crc32c(data[16:]) == checksum and row_bytes == table._row_bytes:
                if version != VERSION:
                    raise ValueError(f"{path} has format version {version}, this release reads {VERSION}; update laser")
                split = HEADER.size + 8 * rows
                values = np.frombuffer(data[split:], field.dtype).reshape(rows, field.length)
                return cls(field, np.frombuffer(data[HEADER.size : split], np.uint64), values)
        raise ValueError(f"{path} is damaged at offset 0: it does not match its checksum; restore it from a copy")

    @property
    def _row_bytes(self) -> int:
        return self.values.itemsize * self.field.length


class ByCode:
    """A table spread out by the codes of its ids, as far as these are given. The vault's lock guards it."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._known: np.ndarray | None = None
        self._values = np.empty((table.field.length, 0), table.values.dtype)
        self._done = 0

    def values(self, dictionary: Dictionary) -> np.ndarray:
        """Unsigned [length, C]: values by code; 0 where the table has none. Stays as it is."""
        ids, table = dictionary.ids, self.table
        if self._known is not ids.base or self._done > len(ids):
            # Codes were taken back, or the dictionary has grown: room for as many as it has room for.
            self._known, self._done = ids.base, 0
            assert ids.base is not None
            self._values = np.zeros((table.field.length, len(ids.base)), self._values.dtype)
        if self._done < len(ids):
            new = ids[self._done :].astype(np.uint64)
            at = np.minimum(np.searchsorted(table.ids, new), max(0, len(table.ids) - 1))
            if len(table.ids):
                found = table.ids[at] == new
                self._values[:, self._done : len(ids)][:, found] = table.values[at[found]].T
            self._done = len(ids)
        return self._values[:, : len(ids)].view(table.field.unsigned)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: by id, and by code as far as these have been asked for."""
        return self.table.ids.nbytes + self.table.values.nbytes + self._values.nbytes


class Tables:
    """The tables of a vault, by field; those of ``known``, an earlier state, are taken over where they are the same."""

    def __init__(self, folder: Path, layout: Layout, numbers: Mapping[str, int], known: Tables | None = None) -> None:
        self.numbers = dict(numbers)
        self.by_field: dict[str, ByCode] = {}
        for field in layout.derived:
            number = numbers.get(field.name, 0)
            if known is not None and known.numbers.get(field.name, 0) == number:
                self.by_field[field.name] = known.by_field[field.name]
                continue
            table = Table.load(field, folder / file_name(number)) if number else Table.empty(field)
            self.by_field[field.name] = ByCode(table)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(values.nbytes for values in self.by_field.values())

    def checked(self, layout: Layout, name: str, ids: Any, values: Any) -> Table:
        """The table of a field with the changes that a caller wants.

        Raises:
            ValueError: when the field is not derived, or ids or values do not fit.
        """
        if name not in self.by_field:
            raise ValueError(f"field {name!r} is not derived; those that are: {sorted(self.by_field)}")
        table = self.by_field[name].table
        key = layout.choose([table.field.key])[0]
        size = len(np.atleast_1d(np.asarray(ids)))
        given = coerce_values(key, np.atleast_1d(np.asarray(ids)), size).view(key.unsigned).astype(np.uint64)
        return table.updated(given, coerce_values(table.field, values, size))


@dataclass(frozen=True)
class RecentValues:
    """Derived values of events in memory: indexed by positions like an array of events, without making one.

    Args:
        values: unsigned [length, C], by code.
        codes: int32, code of each event's id.
        field: whose values these are.
    """

    values: np.ndarray
    codes: np.ndarray
    field: DerivedField

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        chosen = self.values[:, self.codes[positions]].view(self.field.dtype)
        return np.ascontiguousarray(chosen.T).reshape(-1, *self.field.shape)
