"""Checkpoints as one file in the safetensors format, and back.

The format is 8 bytes with the length of a JSON header, the header (name, type, shape and place of each tensor, and a
map of strings), then the bytes of the tensors: https://github.com/huggingface/safetensors. A file of ours keeps the
rest of its checkpoint in that map: ``facts`` (JSON) and ``trainer`` (``trainer.pt``, base64).
"""

from __future__ import annotations

import base64
import io
import json
import mmap
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laser.train.checkpoint import TRAINER, read_facts, read_trainer_state, save
from laser.train.checkpoint_files import damaged
from laser.train.stored_tensors import StoredTensors

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TYPES.items()}


def write_single(checkpoint: Path, file: Path, *, model_only: bool = False) -> None:
    """Write a checkpoint's tensors to one file, a tensor at a time.

    Args:
        checkpoint: folder of the checkpoint.
        file: to write; replaced when all of it is there.
        model_only: leave out the state of optimizers and trainer, which makes a file that cannot be turned back.

    Raises:
        ValueError: when the checkpoint is damaged.
    """
    stored = StoredTensors(checkpoint)
    names = [name for name in stored.names if name.startswith("model.") or not model_only]
    header: dict[str, Any] = {"__metadata__": {"facts": json.dumps(read_facts(checkpoint))}}
    if not model_only:
        read_trainer_state(checkpoint)  # which checks it
        header["__metadata__"]["trainer"] = base64.b64encode((checkpoint / TRAINER).read_bytes()).decode()
    place = 0
    for name in names:
        entry = {"dtype": NAMES[stored.dtype(name)], "shape": list(stored.size(name))}
        header[name] = entry | {"data_offsets": [place, place := place + stored.nbytes(name)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = file.with_name(f"{file.name}.tmp")
    with temporary.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            out.write(stored.read(name).reshape(-1).view(torch.uint8).numpy().data)
    temporary.replace(file)


def read_single(file: Path, checkpoint: Path) -> None:
    """Write the checkpoint that ``write_single`` made ``file`` of; its tensors are in one piece each.

    Raises:
        ValueError: when the file is damaged or was written without the state of the trainer.
    """
    with file.open("rb") as opened:
        content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        length = struct.unpack_from("<Q", content)[0]
        header = json.loads(content[8 : 8 + length])
        about = header.pop("__metadata__", {})
        tensors = {name: _view(content, 8 + length, entry) for name, entry in header.items()}
    except (ValueError, KeyError, struct.error, RuntimeError) as error:
        raise damaged(file, f"no header of tensors: {error}") from error
    if not {"facts", "trainer"} <= about.keys():
        raise ValueError(
            f"{file} holds no state of a trainer; make it with laser checkpoint convert from a checkpoint, without "
            "--model_only"
        )
    state = torch.load(io.BytesIO(base64.b64decode(about["trainer"])), weights_only=True, map_location="cpu")
    save(checkpoint, tensors, state, json.loads(about["facts"]))


def _view(content: mmap.mmap, start: int, entry: dict[str, Any]) -> Tensor:
    """A tensor over the bytes of a mapped file."""
    dtype, (first, last) = TYPES[entry["dtype"]], entry["data_offsets"]
    if first == last:
        return torch.empty(entry["shape"], dtype=dtype)
    count = (last - first) // dtype.itemsize
    return torch.frombuffer(content, dtype=dtype, count=count, offset=start + first).reshape(entry["shape"])
