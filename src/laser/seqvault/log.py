"""The write-ahead log: every append and deletion, in order, before it is acknowledged.

A file starts with 64 bytes (magic, version, CRC32C, number, fields' fingerprint, first sequence number) and continues
with records: 32 bytes of header (magic, CRC32C of the rest, sequence number, events, kind, payload bytes), then for an
append the users (uint64) and each field's values one after the other.

A record that a crash cut short ends the log. A flag tells that everything before a record was durable when it was
written: if such a record follows unreadable bytes, these were damaged, not cut short, and the log is refused.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from laser.seqvault.checksum import crc32c, crc32c_of_rows
from laser.seqvault.durable import sync_directory, write_all
from laser.seqvault.layout import Layout
from laser.seqvault.segment import fingerprint

VERSION = 1
FILE = struct.Struct("<8sIIQQQ24x")
RECORD = struct.Struct("<IIQIIQ")
BEGIN, REST = struct.Struct("<II"), struct.Struct("<QIIQ")
"""A record's header up to its checksum, and what of it the checksum covers."""
CHECKED_FROM = BEGIN.size
RECORD_FIELDS = (
    ("$magic", "<u4"),
    ("$checksum", "<u4"),
    ("$sequence", "<u8"),
    ("$count", "<u4"),
    ("$kind", "<u4"),
    ("$bytes", "<u8"),
    ("$user", "<u8"),
)
"""Header and user of a record of one event; its values follow."""
MOST_SINGLES = 1 << 14
FILE_MAGIC, RECORD_MAGIC = b"LASERLOG", 0x44524352
APPEND, DELETE = 1, 2
DURABLE_BEFORE = 1 << 16


def file_name(number: int) -> str:
    """Name of a log's file."""
    return f"log-{number:08d}.wal"


def _file_header(number: int, layout: Layout, sequence: int) -> bytes:
    bare = FILE.pack(FILE_MAGIC, VERSION, 0, number, fingerprint(layout), sequence)
    return FILE.pack(FILE_MAGIC, VERSION, crc32c(bare), number, fingerprint(layout), sequence)


def encode(sequence: int, kind: int, count: int, payload: bytes) -> bytes:
    """One record."""
    return sealed(REST.pack(sequence, count, kind, len(payload)) + payload)


def sealed(rest: bytes) -> bytes:
    """A record from what its checksum covers."""
    return BEGIN.pack(RECORD_MAGIC, google_crc32c.value(rest)) + rest


class LogWriter:
    """The log that is being written."""

    def __init__(self, folder: Path, number: int, layout: Layout, sequence: int) -> None:
        self.number, self.path = number, folder / file_name(number)
        self.first_sequence = self.sequence = sequence
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(self.file, _file_header(number, layout, sequence))
            os.fsync(self.file)
            sync_directory(folder)
        except OSError:
            os.close(self.file)
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
            raise
        self.position = self.durable = FILE.size
        self.failed: OSError | None = None

    @property
    def records(self) -> bool:
        """Whether there are any."""
        return self.position > FILE.size

    @property
    def flags(self) -> int:
        """What the kind of the next record says besides.

        Raises:
            ValueError: when an earlier failure left the log in doubt.
        """
        if self.failed:
            raise ValueError(f"{self.path} could not be made durable ({self.failed}); open the vault again")
        return DURABLE_BEFORE if self.durable == self.position else 0

    def write(self, kind: int, count: int, payload: bytes) -> None:
        """Append one record.

        Raises:
            OSError: when it could not be stored; the log is then as before the call.
            ValueError: when an earlier failure left the log in doubt.
        """
        self.write_record(encode(self.sequence, kind | self.flags, count, payload))

    def write_record(self, record: bytes) -> None:
        """Append a record that was made with ``sequence`` and ``flags``; as ``write``."""
        try:
            written = os.write(self.file, record)
            if written < len(record):
                write_all(self.file, memoryview(record)[written:])
        except OSError:
            self._cut_back()
            raise
        self.sequence += 1
        self.position += len(record)

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self.file, self.position)
            os.lseek(self.file, self.position, os.SEEK_SET)
        except OSError as error:
            self.failed = error

    def sync(self) -> None:
        """Make all records durable. After a failure nothing is known about them, so the log takes no more."""
        if self.durable == self.position:
            return
        position = self.position
        try:
            os.fdatasync(self.file)
        except OSError as error:
            self.failed = error
            raise
        self.durable = position

    def close(self) -> None:
        """Close without making durable."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


@dataclass(frozen=True)
class Record:
    """One operation: users and events of an append, or the user of a deletion (``events`` empty).

    Appends of one event are read many at a time; the sequence number is then that of the last.
    """

    sequence: int
    kind: int
    users: np.ndarray
    events: dict[str, np.ndarray]


class LogReader:
    """Reads a log from where it stopped last."""

    def __init__(self, folder: Path, number: int, layout: Layout) -> None:
        self.number, self.path, self.layout = number, folder / file_name(number), layout
        self._single = np.dtype([*RECORD_FIELDS, *((field.name, field.dtype, field.shape) for field in layout.fields)])
        # Kept open: the writer may remove the name while we still need the records.
        self._file = self.path.open("rb")
        self.position = 0
        """Bytes read; 0 until the file's header is complete."""
        self.unread = 0
        """Bytes after the last readable record."""

    def _read_header(self, expected: int) -> bool:
        """Whether the header is complete; a log cut short within it was never written to."""
        head = os.pread(self._file.fileno(), FILE.size + 1, 0)
        lone, head = len(head) <= FILE.size, head[: FILE.size]
        if len(head) < FILE.size:
            return False
        if head == _file_header(self.number, self.layout, expected):
            self.position = FILE.size
            return True
        magic, version, checksum, number, fields, sequence = FILE.unpack(head)
        intact = magic == FILE_MAGIC and checksum == crc32c(FILE.pack(magic, version, 0, number, fields, sequence))
        if intact and version != VERSION:
            raise ValueError(f"{self.path} has format version {version}, this release reads {VERSION}; update laser")
        if head == _file_header(self.number, self.layout, sequence):
            raise ValueError(
                f"{self.path} begins with record {sequence}, but what precedes it ends before record {expected}: "
                f"the log before it is damaged at its end; restore it from a copy"
            )
        if lone:
            return False  # power may fail when the file is that long, but its contents are not durable yet
        raise ValueError(f"{self.path} is damaged at offset 0: its header is not that of log {self.number}; restore it")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def records(self, expected: int) -> Iterator[Record]:
        """Readable records from the current position; ``expected`` is the first one's sequence number.

        Raises:
            ValueError: when the file is of another version, or records that had been durable are unreadable.
        """
        if not self.position and not self._read_header(expected):
            return
        self._file.seek(self.position)
        data = memoryview(self._file.read())
        at = 0
        while True:
            if (run := _singles(data, at, expected, self._single)) is not None:
                at += run.nbytes
                expected += len(run)
                self.position += run.nbytes
                events = {field.name: run[field.name] for field in self.layout.fields}
                yield Record(expected - 1, APPEND, run["$user"], events)
                continue
            if not (size := _readable(data, at, expected)):
                break
            _, _, sequence, count, kind, _ = RECORD.unpack_from(data, at)
            payload = data[at + RECORD.size : at + size]
            at += size
            expected = sequence + 1
            self.position += size
            yield _decode(sequence, kind & 0xFFFF, count, payload, self.layout)
        self.unread = len(data) - at
        if (beyond := _durable_beyond(data, at, expected)) >= 0:
            raise ValueError(
                f"{self.path} is damaged at offset {self.position}: unreadable bytes are followed by a durable record "
                f"at offset {self.position + beyond - at}; restore the file from a copy"
            )


def _singles(data: memoryview, at: int, expected: int, row: np.dtype) -> np.ndarray | None:
    """Two or more intact appends of one event each that begin at ``at``; one by one they would take far longer."""
    most = min((len(data) - at) // row.itemsize, MOST_SINGLES)
    if most < 2 or RECORD.unpack_from(data, at)[3] != 1:
        return None
    rows = np.frombuffer(data, row, most, at)
    fits = (rows["$magic"] == RECORD_MAGIC) & (rows["$sequence"] == expected + np.arange(most, dtype=np.uint64))
    fits &= (rows["$count"] == 1) & (rows["$kind"] & 0xFFFF == APPEND) & (rows["$bytes"] == row.itemsize - RECORD.size)
    if (count := most if fits.all() else int(np.argmin(fits))) < 2:
        return None
    content = np.frombuffer(data, np.uint8, count * row.itemsize, at).reshape(count, row.itemsize)
    intact = crc32c_of_rows(content[:, CHECKED_FROM:]) == rows["$checksum"][:count]
    count = count if intact.all() else int(np.argmin(intact))
    return rows[:count] if count > 1 else None


def _readable(data: memoryview, at: int, expected: int | None) -> int:
    """Bytes of the intact record at ``at``, or 0."""
    if at + RECORD.size > len(data):
        return 0
    magic, checksum, sequence, _, _, length = RECORD.unpack_from(data, at)
    if magic != RECORD_MAGIC or at + RECORD.size + length > len(data) or expected not in (None, sequence):
        return 0
    size = RECORD.size + length
    return size if crc32c(data[at + 8 : at + size]) == checksum else 0


def _durable_beyond(data: memoryview, at: int, expected: int) -> int:
    """Position of an intact later record before which all was durable, or -1."""
    mark, raw = struct.pack("<I", RECORD_MAGIC), bytes(data[at:])
    found = raw.find(mark)
    while found >= 0:
        if _readable(data, at + found, None):
            _, _, sequence, _, kind, _ = RECORD.unpack_from(data, at + found)
            if kind & DURABLE_BEFORE and sequence > expected:
                return at + found
        found = raw.find(mark, found + 1)
    return -1


def _decode(sequence: int, kind: int, count: int, payload: memoryview, layout: Layout) -> Record:
    users = np.frombuffer(payload, "<u8", count)
    if kind == DELETE:
        return Record(sequence, kind, users, {})
    events, at = {}, users.nbytes
    for field in layout.fields:
        values = np.frombuffer(payload, field.dtype, count * field.length, at)
        events[field.name] = values.reshape(count, *field.shape)
        at += values.nbytes
    return Record(sequence, kind, users, events)
