"""Files in the safetensors format, written tensor by tensor and read as memory maps.

The format is 8 bytes with the length of a JSON header, the header (name, type, shape and place of each tensor, and a
map of strings), then the bytes of the tensors: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TYPES.items()}
ALIGNMENT = 64
"""Bytes: every tensor begins at a multiple of the alignment of anything that reads it where it lies."""


@dataclass(frozen=True)
class Entry:
    """A tensor to write.

    Args:
        dtype: of its values.
        shape: of the whole tensor.
        blocks: gives its rows in order, in blocks that fit into memory.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Tensor]]

    @classmethod
    def of(cls, tensor: Tensor) -> Entry:
        """A tensor that is in memory."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: [tensor])

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_tensors(file: Path, entries: Mapping[str, Entry], about: Mapping[str, str] | None = None) -> None:
    """Write tensors to one file, which appears when all of it is there.

    Args:
        file: to write or replace.
        entries: the tensors by name; their bytes lie in this order.
        about: strings for the header.
    """
    header: dict[str, Any] = {"__metadata__": dict(about or {})}
    place = 0
    for name, entry in entries.items():
        place_of_next = place + entry.nbytes
        header[name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [place, place_of_next],
        }
        place = place_of_next
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    temporary = file.with_name(f"{file.name}.tmp")
    with temporary.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for entry in entries.values():
            for block in entry.blocks():
                out.write(block.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    temporary.replace(file)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file as views of its memory map, which are not to be written to, and the header's strings.

    Raises:
        ValueError: when the file is not in the format; the message says why, not which file.
        OSError: when it cannot be opened.
    """
    with file.open("rb") as opened:
        if opened.seek(0, 2) < 8:
            raise ValueError("it is shorter than the length of a header")
        # Copy on write: torch asks for writable memory.
        content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        length = struct.unpack_from("<Q", content)[0]
        header = json.loads(content[8 : 8 + length])
        about = header.pop("__metadata__", {})
        return {name: _view(content, 8 + length, entry) for name, entry in header.items()}, about
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"no header of tensors: {error}") from error


def _view(content: mmap.mmap, start: int, entry: dict[str, Any]) -> Tensor:
    """A tensor over the bytes of a mapped file."""
    dtype, (first, last) = TYPES[entry["dtype"]], entry["data_offsets"]
    if first == last:
        return torch.empty(entry["shape"], dtype=dtype)
    count = (last - first) // dtype.itemsize
    return torch.frombuffer(content, dtype=dtype, count=count, offset=start + first).reshape(entry["shape"])
