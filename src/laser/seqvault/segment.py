"""Segment files: packed chunks of many users, then a directory of index edits. Never changed once written.

header    64 bytes: magic, version, CRC32C of the header, number, fields' fingerprint
chunks    see packing.py
directory ``ENTRY`` records (index.py)
trailer   64 bytes: magic, CRC32C of the trailer, directory's offset, records and CRC32C
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from laser.seqvault.checksum import crc32c
from laser.seqvault.durable import write_all
from laser.seqvault.index import ENTRY
from laser.seqvault.layout import Layout

VERSION = 2
HEADER = struct.Struct("<8sIIQQ32x")
TRAILER = struct.Struct("<8sIIQQI28x")
HEADER_MAGIC, TRAILER_MAGIC = b"LASERSEG", b"LASEREND"
HEADER_BYTES = HEADER.size


def file_name(number: int) -> str:
    """Name of a segment's file."""
    return f"segment-{number:08d}.seg"


def fingerprint(layout: Layout) -> int:
    """Number that changes with the fields of an event."""
    return crc32c(repr(layout.fields).encode())


def _header(number: int, layout: Layout) -> bytes:
    bare = HEADER.pack(HEADER_MAGIC, VERSION, 0, number, fingerprint(layout))
    return HEADER.pack(HEADER_MAGIC, VERSION, crc32c(bare), number, fingerprint(layout))


def _trailer(offset: int, entries: int, checksum: int) -> bytes:
    bare = TRAILER.pack(TRAILER_MAGIC, 0, VERSION, offset, entries, checksum)
    return TRAILER.pack(TRAILER_MAGIC, crc32c(bare), VERSION, offset, entries, checksum)


class SegmentWriter:
    """Writes one segment. Until a manifest names it, the file does not count."""

    def __init__(self, folder: Path, number: int, layout: Layout) -> None:
        self.number, self.path = number, folder / file_name(number)
        self.words = HEADER_BYTES // 8
        self.events = 0
        self.entries: list[np.ndarray] = []
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(self.file, _header(number, layout))
        except BaseException:
            self.abandon()
            raise

    def write(self, packed: np.ndarray, entries: np.ndarray) -> None:
        """Add packed chunks (uint64 words) and their edits, whose offsets count from the start of ``packed``."""
        placed = entries.copy()
        placed["offset"][placed["count"] > 0] += self.words
        write_all(self.file, packed.data)
        self.words += len(packed)
        self.events += int(entries["count"].sum())
        self.entries.append(placed)

    def finish(self) -> np.ndarray:
        """Write directory and trailer, make the file durable, close it; returns the directory."""
        directory = np.concatenate(self.entries) if self.entries else np.empty(0, ENTRY)
        data = directory.tobytes()
        write_all(self.file, data)
        write_all(self.file, _trailer(self.words * 8, len(directory), crc32c(data)))
        os.fsync(self.file)
        os.close(self.file)
        self.file = -1
        return directory

    def abandon(self) -> None:
        """Close and remove the file."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
        self.path.unlink(missing_ok=True)

    @property
    def bytes(self) -> int:
        """Bytes of the chunks so far."""
        return self.words * 8


class Segment:
    """A segment open for reading. The file stays readable while this object lives, even when its name is gone.

    Raises:
        ValueError: when the file is missing, damaged, or of another version.
    """

    def __init__(self, folder: Path, number: int, layout: Layout) -> None:
        self.number, self.path, self.file = number, folder / file_name(number), -1
        self.file = os.open(self.path, os.O_RDONLY)
        head = os.pread(self.file, HEADER_BYTES, 0)
        if head != _header(number, layout):
            self._refuse(head)

    def _refuse(self, head: bytes) -> None:
        if len(head) == HEADER_BYTES:
            magic, version, checksum, number, fields = HEADER.unpack(head)
            intact = checksum == crc32c(HEADER.pack(magic, version, 0, number, fields))
            if magic == HEADER_MAGIC and intact and version != VERSION:
                raise ValueError(
                    f"{self.path} has format version {version}, this release reads {VERSION}; update laser"
                )
        raise ValueError(
            f"{self.path} is damaged at offset 0: its header is not that of segment {self.number}; restore it"
        )

    def directory(self) -> np.ndarray:
        """The index edits, ``ENTRY`` records.

        Raises:
            ValueError: when directory or trailer is damaged.
        """
        size = os.fstat(self.file).st_size
        data = os.pread(self.file, TRAILER.size, max(0, size - TRAILER.size))
        if len(data) == TRAILER.size:
            _, _, _, offset, entries, checksum = TRAILER.unpack(data)
            if data == _trailer(offset, entries, checksum):
                found = os.pread(self.file, entries * ENTRY.itemsize, offset)
                if crc32c(found) != checksum:
                    raise ValueError(
                        f"{self.path} is damaged at offset {offset}: its directory does not match its checksum"
                    )
                return np.frombuffer(found, ENTRY)
        raise ValueError(f"{self.path} is damaged at offset {max(0, size - TRAILER.size)}: its trailer is not readable")

    def __del__(self) -> None:
        if self.file >= 0:
            os.close(self.file)
