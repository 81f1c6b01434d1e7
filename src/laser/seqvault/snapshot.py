"""The index as a file, so that opening a vault need not read every segment's directory.

64 bytes (magic, version, CRC32C of all that follows this field, rows, chunks), then ``ROW`` and ``CHUNK`` records.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from laser.seqvault.checksum import crc32c
from laser.seqvault.durable import write_all
from laser.seqvault.index import CHUNK, ROW, Index

VERSION = 2
HEADER = struct.Struct("<8sIIQQ32x")
MAGIC = b"LASERIDX"


def file_name(number: int) -> str:
    """Name of a snapshot's file."""
    return f"index-{number:08d}.idx"


def save(folder: Path, number: int, index: Index) -> None:
    """Write a snapshot of a compacted index, durably. Until a manifest names it, the file does not count."""
    rows, chunks = index.rows.tobytes(), index.chunks.tobytes()
    bare = HEADER.pack(MAGIC, VERSION, 0, len(index.rows), len(index.chunks))
    checksum = crc32c(bare[16:] + rows + chunks)
    path = folder / file_name(number)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for part in (HEADER.pack(MAGIC, VERSION, checksum, len(index.rows), len(index.chunks)), rows, chunks):
            write_all(file, part)
        os.fsync(file)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)


def load(folder: Path, number: int) -> Index:
    """Read a snapshot.

    Raises:
        ValueError: when it is missing, damaged or of another version.
    """
    path = folder / file_name(number)
    if not path.exists():
        raise ValueError(f"{path} is missing")
    data = path.read_bytes()
    if len(data) < HEADER.size or data[:8] != MAGIC:
        raise ValueError(f"{path} is damaged at offset 0: it is no index snapshot")
    _, version, checksum, num_rows, num_chunks = HEADER.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"{path} has format version {version}, this release reads {VERSION}")
    split = HEADER.size + num_rows * ROW.itemsize
    if len(data) != split + num_chunks * CHUNK.itemsize or crc32c(data[16:]) != checksum:
        raise ValueError(f"{path} is damaged at offset 16: its contents do not match its checksum")
    rows, chunks = np.frombuffer(data[HEADER.size : split], ROW), np.frombuffer(data[split:], CHUNK)
    return Index(rows.copy(), chunks.copy())
