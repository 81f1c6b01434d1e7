"""Files of a checkpoint: an index that is read without running code, and directories that are replaced atomically."""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

INDEX = ".metadata"


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
            raise ValueError(f"checkpoint {self.path} has a damaged index ({error}); use another checkpoint") from error
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


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
