"""Files of a checkpoint: an index that is read without running code, pieces with checksums, atomic directories.

Beside every file of tensors lies ``FILE.crc32c``, a JSON object with the place and CRC-32C of each piece in it:
``{"OFFSET": [BYTES, CRC]}``. Every process writes that of its own file, and a piece is checked when it is read.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import IO, Any

import google_crc32c
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

INDEX = ".metadata"
CHECKSUMS = ".crc32c"
BLOCK = 1 << 24
"""Bytes that are read at once to compute a checksum."""


def damaged(path: Path | str, reason: str) -> ValueError:
    """The error of a file that is missing, or is not what was written."""
    return ValueError(f"{path} is damaged ({reason}); use another checkpoint")


class TensorWriter(dcp.FileSystemWriter):
    """Writes tensors, and the checksum of every piece."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's pieces to its files, and their checksums."""
        written = super().write_data(plan, planner)
        pieces: dict[str, dict[int, tuple[int, int]]] = {}
        for result in written.value():
            info = result.storage_data
            with (Path(self.path) / info.relative_path).open("rb") as file:
                pieces.setdefault(info.relative_path, {})[info.offset] = (
                    info.length,
                    checksum(file, info.offset, info.length),
                )
        for name, entries in pieces.items():
            path = Path(self.path) / f"{name}{CHECKSUMS}"
            path.write_text(json.dumps(entries))
            sync(path)
        return written


class TensorReader(dcp.FileSystemReader):
    """Reads tensors and nothing else: no type outside of the index format is ever constructed."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index of the checkpoint.

        Raises:
            ValueError: when it is damaged or names a type that does not belong there.
        """
        try:
            metadata = IndexUnpickler(io.BytesIO((Path(self.path) / INDEX).read_bytes())).load()
            assert all(isinstance(entry, TensorStorageMetadata) for entry in metadata.state_dict_metadata.values())
        except Exception as error:
            raise damaged(Path(self.path) / INDEX, f"no index of tensors: {error}") from error
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        self.checksums: dict[str, dict[str, list[int]]] = {}
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the pieces that this process needs.

        Raises:
            ValueError: when a file is missing or a piece differs from what was written.
        """
        try:
            return super().read_data(plan, planner)
        except FileNotFoundError as error:
            raise damaged(error.filename, "it is missing") from error

    def _slice_file(self, file: IO[bytes], sinfo: Any) -> IO[bytes]:
        path, key = Path(self.path) / sinfo.relative_path, str(sinfo.offset)
        if sinfo.relative_path not in self.checksums:
            self.checksums[sinfo.relative_path] = _read_checksums(path)
        saved = self.checksums[sinfo.relative_path].get(key)
        if saved != [sinfo.length, checksum(file, sinfo.offset, sinfo.length)]:
            raise damaged(path, f"wrong checksum of the {sinfo.length} bytes from {sinfo.offset}")
        return super()._slice_file(file, sinfo)


def _read_checksums(path: Path) -> dict[str, list[int]]:
    """Checksums of the pieces of a file."""
    beside = path.with_name(f"{path.name}{CHECKSUMS}")
    try:
        return json.loads(beside.read_text())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise damaged(beside, str(error)) from error


def checksum(file: IO[bytes], offset: int, length: int) -> int:
    """CRC-32C of a part of a file; of what there is when it ends earlier."""
    file.seek(offset)
    value = 0
    while length > 0 and (block := file.read(min(BLOCK, length))):
        value = google_crc32c.extend(value, block)
        length -= len(block)
    return value


class IndexUnpickler(pickle.Unpickler):
    """Unpickler with a closed list of types."""

    allowed = frozenset(
        {
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch.serialization", "_get_layout"),
            ("torch", "Size"),
            ("pathlib", "PosixPath"),
            *(
                ("torch.distributed.checkpoint.metadata", name)
                for name in (
                    "Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
                    "StorageMeta", "_MEM_FORMAT_ENCODING",
                )
            ),
        }
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        """A type of the index format, or a refusal."""
        if (module, name) in self.allowed or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"type {module}.{name} is not allowed")


def replace_directory(new: Path, old: Path) -> None:
    """Put directory ``new`` in the place of ``old``; at no time is there nothing under that name."""
    if not old.exists():
        new.rename(old)
    else:
        _exchange(new, old)
        shutil.rmtree(new)
    sync(old.parent)


def existing(path: Path) -> Path:
    """``path``, or the directory that was moved aside when a crash hit between the two renames of a replacement."""
    aside = path.with_name(f"{path.name}.old")
    return aside if aside.exists() and not path.exists() else path


def _exchange(a: Path, b: Path) -> None:
    rename_exchange, at_current_directory = 2, -100
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(at_current_directory, os.fsencode(a), at_current_directory, os.fsencode(b), rename_exchange) == 0:
        return
    # File systems without the exchange (NFS, some overlays) get two renames.
    aside = b.with_name(f"{b.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    b.rename(aside)
    a.rename(b)
    aside.rename(a)


def sync(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
