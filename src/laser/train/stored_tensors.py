"""Tensors of a checkpoint by name, whole or in part, read by one process alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from laser.train.checkpoint_files import TensorReader, damaged


class StoredTensors:
    """What the tensors of a checkpoint are, and parts of their values; nothing is read before it is asked for.

    Args:
        path: folder of the checkpoint.

    Raises:
        ValueError: when its index is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = TensorReader(path)
        self._index = self._reader.read_metadata()
        self._entries: dict[str, Any] = dict(self._index.state_dict_metadata)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._entries)

    def size(self, name: str) -> torch.Size:
        """Shape of the whole tensor."""
        return self._entries[name].size

    def dtype(self, name: str) -> torch.dtype:
        """Type of its values."""
        return self._entries[name].properties.dtype

    def pieces(self, name: str) -> int:
        """Number of shards that it is stored in."""
        return len(self._entries[name].chunks)

    def nbytes(self, name: str) -> int:
        """Bytes of the whole tensor."""
        return self.size(name).numel() * self.dtype(name).itemsize

    def read(self, name: str) -> Tensor:
        """The whole tensor, on the CPU.

        Raises:
            ValueError: when a file is missing or damaged.
        """
        out = torch.empty(self.size(name), dtype=self.dtype(name))
        self.fill(name, out, (0,) * out.dim())
        return out

    @torch.no_grad()
    def fill(self, name: str, out: Tensor, start: Sequence[int]) -> None:
        """Copy the part that begins at ``start`` into ``out``; what lies beyond the stored tensor is left as it is.

        Args:
            name: of the stored tensor.
            out: of the same number of dimensions; any device and dtype.
            start: position of ``out`` in the stored tensor, per dimension.

        Raises:
            ValueError: when a file is missing or damaged.
        """
        for chunk in self._entries[name].chunks:
            low = [max(a, b) for a, b in zip(chunk.offsets, start, strict=True)]
            ends = zip(chunk.offsets, chunk.sizes, start, out.shape, strict=True)
            high = [min(a + size, b + other) for a, size, b, other in ends]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            ours, theirs = (
                tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))
                for origin in (start, chunk.offsets)
            )
            out[ours].copy_(self._piece(name, chunk)[theirs])

    def _piece(self, name: str, chunk: ChunkStorageMetadata) -> Tensor:
        assert self._index.storage_data is not None
        info = self._index.storage_data[MetadataIndex(name, chunk.offsets)]
        path = self.path / info.relative_path
        try:
            with path.open("rb") as file:
                return torch.load(self._reader._slice_file(file, info), weights_only=True, map_location="cpu")
        except FileNotFoundError as error:
            raise damaged(error.filename, "it is missing") from error
