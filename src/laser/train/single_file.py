"""Checkpoints as one file in the safetensors format, and back.

A file of ours keeps the rest of its checkpoint in the header's map of strings: ``facts`` (JSON) and ``trainer``
(``trainer.pt``, base64).
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import torch

from laser.tensor_file import Entry, read_tensors, write_tensors
from laser.train.checkpoint import TRAINER, read_facts, read_trainer_state, save
from laser.train.checkpoint_files import damaged
from laser.train.stored_tensors import StoredTensors


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
    about = {"facts": json.dumps(read_facts(checkpoint))}
    if not model_only:
        read_trainer_state(checkpoint)  # which checks it
        about["trainer"] = base64.b64encode((checkpoint / TRAINER).read_bytes()).decode()
    entries = {
        name: Entry(stored.dtype(name), tuple(stored.size(name)), lambda name=name: [stored.read(name)])
        for name in names
    }
    write_tensors(file, entries, about)


def read_single(file: Path, checkpoint: Path) -> None:
    """Write the checkpoint that ``write_single`` made ``file`` of; its tensors are in one piece each.

    Raises:
        ValueError: when the file is damaged or was written without the state of the trainer.
    """
    try:
        tensors, about = read_tensors(file)
    except ValueError as error:
        raise damaged(file, str(error)) from error
    if not {"facts", "trainer"} <= about.keys():
        raise ValueError(
            f"{file} holds no state of a trainer; make it with laser checkpoint convert from a checkpoint, without "
            "--model_only"
        )
    state = torch.load(io.BytesIO(base64.b64decode(about["trainer"])), weights_only=True, map_location="cpu")
    save(checkpoint, tensors, state, json.loads(about["facts"]))
