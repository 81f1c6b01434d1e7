"""Id dictionaries: one append-only list of distinct values per id field, shared by the whole vault.

Segments then hold a value's position (its code) instead of the value. Codes never change: they are given in the order
in which ids first reach the log, so that every process that follows the log gives the same ones, also before a
checkpoint makes them durable.

A file is 64 bytes (magic, version, CRC32C, field's number, fields' fingerprint) and blocks of 24 bytes (magic, CRC32C
of the rest, first code, values) followed by values of the field's own size. The manifest tells how far it counts.

Legend of shape suffixes: N values.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Container, Iterable
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laser.seqvault.checksum import crc32c
from laser.seqvault.durable import write_all
from laser.seqvault.index import GOLDEN
from laser.seqvault.jit import kernel
from laser.seqvault.layout import Field, Layout
from laser.seqvault.segment import fingerprint

VERSION = 1
HEADER = struct.Struct("<8sIIQQ32x")
BLOCK = struct.Struct("<IIQQ")
MAGIC, BLOCK_MAGIC = b"LASERIDS", 0x4B4C4249
MOST_IDS = 2**31 - 1
LOAD = 0.75
"""Share of the hash table in use at most. With growth by half, a writer needs 14 to 20 bytes for an id of 8."""


@dataclass(frozen=True)
class DictionaryEntry:
    """What the manifest says of a dictionary: its field, and how many ids and bytes of its file count."""

    field: str
    ids: int
    bytes: int


def file_name(position: int) -> str:
    """Name of the dictionary of the field at a position of the layout."""
    return f"ids-{position:04d}.ids"


@kernel
def _find(value: Any, ids: np.ndarray, table: np.ndarray) -> Any:
    """Slot of a value, or the free one where it would go. The table may have any size."""
    slot = np.int64((((np.uint64(value) * GOLDEN) >> np.uint64(32)) * np.uint64(len(table))) >> np.uint64(32))
    while table[slot] >= 0 and ids[table[slot]] != value:
        slot += 1
        if slot == len(table):
            slot = 0
    return slot


@kernel
def _fill(ids: np.ndarray, count: int, table: np.ndarray) -> None:
    table[:] = -1
    for code in range(count):
        table[_find(ids[code], ids, table)] = code


@kernel
def _encode(values: np.ndarray, begin: int, ids: np.ndarray, count: int, table: np.ndarray, codes: np.ndarray) -> Any:
    """Codes of ``values`` from ``begin`` on, new ones added; returns where it stopped for want of room, and the ids."""
    for position in range(begin, len(values)):
        value = values[position]
        slot = _find(value, ids, table)
        if table[slot] < 0:
            if count == len(ids):
                return position, count
            ids[count] = value
            table[slot] = count
            count += 1
        codes[position] = table[slot]
    return len(values), count


class Dictionary:
    """Ids of one field. Not thread-safe: the vault's lock guards it; arrays handed out stay as they are."""

    def __init__(self, folder: Path, layout: Layout, field: Field) -> None:
        self.field, self.position = field, layout.names.index(field.name)
        self.path = folder / file_name(self.position)
        self.durable = DictionaryEntry(field.name, 0, 0)
        self.count = 0
        self._ids = np.empty(0, field.unsigned)
        self._loaded = True
        self._table: np.ndarray | None = None
        self._header = HEADER.pack(MAGIC, VERSION, 0, self.position, fingerprint(layout))
        self._header = HEADER.pack(MAGIC, VERSION, crc32c(self._header), self.position, fingerprint(layout))

    @property
    def ids(self) -> np.ndarray:
        """Values by code, unsigned integers of the field's size; read from the file when first asked for.

        Raises:
            ValueError: when the file is damaged or of another version; names file and offset.
        """
        if not self._loaded:
            self._load()
        return self._ids[: self.count]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._ids.nbytes + (0 if self._table is None else self._table.nbytes)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Codes of values of any shape, int32; ids seen for the first time are added.

        Raises:
            ValueError: when there are more ids than codes.
        """
        flat = np.ascontiguousarray(values).reshape(-1).view(self.field.unsigned)
        codes, position = np.empty(len(flat), np.int32), 0
        if self._table is None:
            self._rehash(len(self.ids) + len(self.ids) // 8)
        while True:
            assert self._table is not None
            position, self.count = _encode(flat, position, self._ids, self.count, self._table, codes)
            if position == len(flat):
                return codes.reshape(values.shape)
            if self.count >= MOST_IDS:
                raise ValueError(f"{self.path} has {MOST_IDS} ids, the most there can be; create the vault without it")
            self._rehash(self.count + self.count // 2)

    def _rehash(self, room: int) -> None:
        room = min(max(room, 1024), MOST_IDS)
        if len(self._ids) < room:
            grown = np.empty(room, self._ids.dtype)
            grown[: self.count] = self.ids
            self._ids = grown
        self._table = None  # the old one need not be there beside the new one
        self._table = np.empty(int(room / LOAD), np.int32)
        _fill(self._ids, self.count, self._table)

    def roll_back(self) -> None:
        """Forget ids that are not durable."""
        if self.count > self.durable.ids:
            # Copied, for a read may still look at the ids that others will now replace.
            self._ids, self.count, self._table = self.ids[: self.durable.ids].copy(), self.durable.ids, None

    def save(self, lock: AbstractContextManager[Any]) -> DictionaryEntry:
        """Write the ids added since the last commit, durably; they count when a manifest says so.

        ``lock``, the vault's, is held only to look at the ids, which others may add to meanwhile.
        """
        known = self.durable
        with lock:
            count = self.count
            if known.bytes and count == known.ids:
                return known
            added = self.ids[known.ids : count].tobytes()
        rest = BLOCK.pack(0, 0, known.ids, count - known.ids)[8:] + added
        block = struct.pack("<II", BLOCK_MAGIC, crc32c(rest)) + rest
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            # What lies behind the durable part was left by an interrupted commit.
            os.ftruncate(file, known.bytes)
            os.lseek(file, known.bytes, os.SEEK_SET)
            write_all(file, block if known.bytes else self._header + block)
            os.fsync(file)
        finally:
            os.close(file)
        return DictionaryEntry(known.field, count, (known.bytes or HEADER.size) + len(block))

    def count_on(self, entry: DictionaryEntry) -> Dictionary:
        """Take over what a manifest says of the file."""
        self.durable, self.count, self._table, self._loaded = entry, entry.ids, None, not entry.bytes
        return self

    def advanced(self, entry: DictionaryEntry) -> Dictionary:
        """This dictionary as a later manifest has it; what is known already is not read again.

        Raises:
            ValueError: when the file is damaged or of another version; names file and offset.
        """
        if entry == self.durable:
            return self
        later, known = copy(self), self.durable
        if not self._loaded or not known.bytes:
            return later.count_on(entry)
        added = self._read(known, entry)
        later.durable, later.count, later._table = entry, entry.ids, None
        later._ids = np.concatenate([self._ids[: known.ids], *added])
        return later

    def _load(self) -> None:
        self._ids = np.concatenate([np.empty(0, self.field.unsigned), *self._read(self._none, self.durable)])
        self._loaded = True

    @property
    def _none(self) -> DictionaryEntry:
        return DictionaryEntry(self.field.name, 0, HEADER.size)

    def _read(self, known: DictionaryEntry, entry: DictionaryEntry) -> list[np.ndarray]:
        """Ids of the file behind the known ones."""
        try:
            with self.path.open("rb") as file:
                head = file.read(HEADER.size)
                file.seek(known.bytes)
                data = memoryview(file.read(entry.bytes - known.bytes))
        except FileNotFoundError:
            raise ValueError(f"{self.path} is missing; restore it from a copy") from None
        if head != self._header:
            self._refuse(head)
        parts, at, count = [], 0, known.ids
        while at < entry.bytes - known.bytes:
            found = self._block(data, at, count, known.bytes)
            parts.append(found)
            at += BLOCK.size + found.nbytes
            count += len(found)
        if count != entry.ids or known.bytes + at != entry.bytes:
            raise ValueError(f"{self.path} has {count} ids, expected {entry.ids}; restore the file from a copy")
        return parts

    def _block(self, data: memoryview, at: int, count: int, begin: int) -> np.ndarray:
        if at + BLOCK.size <= len(data):
            magic, checksum, first, values = BLOCK.unpack_from(data, at)
            end = at + BLOCK.size + values * self._ids.itemsize
            if magic == BLOCK_MAGIC and first == count and end <= len(data) and crc32c(data[at + 8 : end]) == checksum:
                return np.frombuffer(data[at + BLOCK.size : end], self.field.unsigned)
        raise ValueError(
            f"{self.path} is damaged at offset {begin + at}: ids do not match their checksum; restore the file"
        )

    def _refuse(self, head: bytes) -> None:
        if len(head) == HEADER.size:
            magic, version, checksum, *rest = HEADER.unpack(head)
            if magic == MAGIC and version != VERSION and checksum == crc32c(HEADER.pack(magic, version, 0, *rest)):
                raise ValueError(
                    f"{self.path} has format version {version}, this release reads {VERSION}; update laser"
                )
        raise ValueError(f"{self.path} is damaged at offset 0: its header is not that of its field; restore the file")


class Dictionaries:
    """The dictionaries of a vault, by field name."""

    def __init__(self, folder: Path, layout: Layout, entries: Iterable[DictionaryEntry] = ()) -> None:
        self.folder, self.layout = folder, layout
        fields = {field.name: field for field in layout.fields}
        self.by_field = {e.field: Dictionary(folder, layout, fields[e.field]).count_on(e) for e in entries}

    def advanced(self, entries: Iterable[DictionaryEntry]) -> Dictionaries:
        """These dictionaries as a later manifest has them; themselves when nothing has changed."""
        later, fields = Dictionaries(self.folder, self.layout), {field.name: field for field in self.layout.fields}
        for entry in entries:
            known = self.by_field.get(entry.field) or Dictionary(self.folder, self.layout, fields[entry.field])
            later.by_field[entry.field] = known.advanced(entry)
        same = later.by_field.keys() == self.by_field.keys()
        return self if same and all(later.by_field[n] is d for n, d in self.by_field.items()) else later

    def with_added(self, fields: Iterable[Field]) -> Dictionaries:
        """These dictionaries and empty ones for more fields."""
        added = Dictionaries(self.folder, self.layout)
        added.by_field = self.by_field | {f.name: Dictionary(self.folder, self.layout, f) for f in fields}
        return added

    def encode(self, events: dict[str, np.ndarray], known: Container[str] = ()) -> dict[str, np.ndarray]:
        """Events with codes in the fields that have a dictionary, but for ``known``, which hold codes already."""
        coded = {n: d.encode(events[n]) for n, d in self.by_field.items() if n not in known}
        return {**events, **coded}

    def save(self, lock: AbstractContextManager[Any]) -> tuple[DictionaryEntry, ...]:
        """Write what was added, durably; what a manifest is to say of them. ``lock`` is the vault's."""
        return tuple(dictionary.save(lock) for dictionary in self.by_field.values())

    def saved(self, entries: Iterable[DictionaryEntry]) -> None:
        """A manifest with these entries is in place."""
        for entry in entries:
            self.by_field[entry.field].durable = entry

    def roll_back(self) -> None:
        """Forget ids that are not durable."""
        for dictionary in self.by_field.values():
            dictionary.roll_back()

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(dictionary.nbytes for dictionary in self.by_field.values())


def coded_fields(layout: Layout, names: Iterable[str]) -> tuple[Field, ...]:
    """Fields by name that may have a dictionary.

    Raises:
        ValueError: on a name that is no field, or a field that is no whole number or the timestamp.
    """
    fields = layout.choose(names)
    for field in fields:
        if field not in layout.fields or field.name == layout.names[0] or np.dtype(field.dtype).kind not in "iu":
            raise ValueError(f"field {field.name!r} ({field.dtype}) cannot have a dictionary; name integer id fields")
    return fields
