"""Checkpoints: directories that any number of processes can read, replaced atomically, safe to load.

Layout of ``NAME.ckpt/``::

    facts.json             what the checkpoint belongs to: format, data set, optimizer of the tables, versions
    trainer.pt             loops, callbacks, schedulers, position in the data, random numbers (``weights_only=True``)
    .metadata              index of the tensors, by torch.distributed.checkpoint (read with a closed list of types)
    __R_0.distcp           tensors, every process its own shards
    __R_0.distcp.crc32c    checksums of the pieces of that file

Tensors are named ``model.*`` (weights and buffers that an evaluation uses), ``tables.*`` (accumulators of the fused
optimizers) and ``dense.*`` (state of Adam); where ``model.*`` are moving averages, ``training.*`` are the live weights.
A checkpoint is written to a temporary sibling and then swapped with the directory of that name: a crash at any time
leaves the previous one whole.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata

from laser.train.checkpoint_files import (
    INDEX,
    TensorReader,
    TensorWriter,
    damaged,
    existing,
    replace_directory,
    sync,
)
from laser.train.fused_state import fused_state
from laser.train.optim import SparseDenseOptimizer, dense_parameters
from laser.train.sharding import sharded_collections
from laser.versions import recorded

FORMAT = 2
FACTS, TRAINER = "facts.json", "trainer.pt"
MANAGED = "model.managed_ids."
"""Beginning of names of the maps from ids to rows; the table follows."""


def live_tensors(model: nn.Module, optimizer: SparseDenseOptimizer | None) -> dict[str, Any]:
    """Every tensor of a run by its name in a checkpoint, plain or sharded, sharing memory with the run."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for prefix, collection in sharded_collections(model):
        for states in fused_state(collection.fused_optimizer).values():
            tensors |= {f"tables.{prefix}.{name}": tensor for name, tensor in states.items()}
    if optimizer is not None:
        for name, parameter in dense_parameters(model).items():
            state = optimizer.state[parameter]
            tensors |= {f"dense.{name}.{key}": tensor for key, tensor in state.items()}
    return tensors


def packed(trainer_state: dict[str, Any]) -> bytes:
    """Lightning's own state as the bytes of ``trainer.pt``: a copy that later changes do not reach."""
    out = io.BytesIO()  # written to a file at once, torch.save would tell of a full disk as a fault of its own
    torch.save(trainer_state, out)
    return out.getvalue()


def save(
    path: Path | str,
    tensors: dict[str, Any],
    trainer_state: dict[str, Any] | bytes,
    facts: dict[str, Any],
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write a checkpoint; every process of the group, if there is one, calls it.

    Args:
        path: directory to write or replace.
        tensors: what ``live_tensors`` returns.
        trainer_state: Lightning's own state: numbers, strings, tensors and containers of them; or ``packed`` of it.
        facts: what must agree when it is loaded; see ``load``.
        group: of all processes; ``None`` is the default group.

    Raises:
        ValueError: when the disk is full or the folder cannot be written; the previous checkpoint stays.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    state = trainer_state if isinstance(trainer_state, bytes) else packed(trainer_state)

    def begin() -> None:
        if (aside := existing(path)) != path:
            aside.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def finish() -> None:
        whole = {TRAINER: google_crc32c.value(state)}
        whole[INDEX] = google_crc32c.value((temporary / INDEX).read_bytes())
        (temporary / TRAINER).write_bytes(state)
        content = {"format": FORMAT, **facts, "versions": versions(), "checksums": whole}
        (temporary / FACTS).write_text(json.dumps(content, indent=1))
        for name in (TRAINER, FACTS):
            sync(temporary / name)
        sync(temporary)
        replace_directory(temporary, path)

    try:
        _on_first_rank(begin, group)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process alone, knowingly
            alone = not dist.is_initialized()
            dcp.save(tensors, storage_writer=TensorWriter(temporary), process_group=group, no_dist=alone)
        _on_first_rank(finish, group)
    except (OSError, dcp.api.CheckpointException) as error:
        raise ValueError(
            f"could not write checkpoint {path} ({first_cause(error)}); the previous one, if any, is untouched: make "
            "room and start again from it"
        ) from error


def load(path: Path | str, tensors: dict[str, Any], facts: dict[str, Any], *, training: bool) -> dict[str, Any]:
    """Read a checkpoint into ``tensors`` in place, whatever number of processes wrote it; every process calls it.

    Args:
        path: directory that ``save`` wrote.
        tensors: what ``live_tensors`` returns for this run.
        facts: those of this run; ``schema`` must agree, and for training ``table_optimizer``.
        training: also read the state of the optimizers.

    Returns:
        ``trainer_state`` of ``save``.

    Raises:
        ValueError: when there is no checkpoint, it is damaged, or it belongs to another format, data set, optimizer
            or model.
    """
    path = existing(Path(path))
    _check_facts(path, facts, training)
    wanted = tensors if training else {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    trainer_state = read_trainer_state(path)
    reader = TensorReader(path)
    _check_shapes(path, wanted, reader.read_metadata())
    read_tensors(reader, wanted)
    return trainer_state


def read_tensors(reader: TensorReader, wanted: dict[str, Any]) -> None:
    """Fill ``wanted`` in place; every process of the default group, if there is one, calls it.

    Raises:
        ValueError: on all processes, when a file is missing or damaged for any of them.
    """
    try:
        dcp.load(wanted, storage_reader=reader, no_dist=not dist.is_initialized())
    except dcp.api.CheckpointException as error:
        raise ValueError(first_cause(error)) from error


def read_trainer_state(path: Path) -> dict[str, Any]:
    """Lightning's state in a checkpoint, from which no code is run.

    Raises:
        ValueError: when the file or the index is not what was written, or holds anything but plain values.
    """
    try:
        for name, value in read_facts(path)["checksums"].items():
            if google_crc32c.value((path / name).read_bytes()) != value:
                raise damaged(path / name, "wrong checksum")
        return torch.load(path / TRAINER, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise damaged(error.filename, "it is missing") from error
    except pickle.UnpicklingError as error:
        raise damaged(path / TRAINER, "it holds more than plain values") from error


def versions() -> dict[str, str]:
    """Versions of the code that writes a checkpoint."""
    return recorded("laser-ctr", "torch", "torchrec", "lightning")


def first_cause(error: BaseException) -> str:
    """What went wrong, in the words of the first process that failed."""
    failures = getattr(error, "failures", None)
    return str(next(iter(failures.values()))[0]) if failures else str(error)


def read_facts(path: Path | str) -> dict[str, Any]:
    """Contents of ``facts.json``.

    Raises:
        ValueError: when ``path`` is not a checkpoint of this format.
    """
    try:
        facts = json.loads((existing(Path(path)) / FACTS).read_text())
    except (OSError, json.JSONDecodeError):
        raise ValueError(
            f"no checkpoint at {path}; give a folder such as runs/demo/checkpoints/best.ckpt that laser fit wrote"
        ) from None
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {facts.get('format')}, this release reads format {FORMAT}; use the release "
            "that wrote it"
        )
    return facts


def _check_facts(path: Path, facts: dict[str, Any], training: bool) -> None:
    saved = read_facts(path)
    if saved["schema"] != facts["schema"]:
        raise ValueError(
            f"checkpoint {path} was trained on data set {saved['data_set']!r} with schema {saved['schema']}, but the "
            f"recipe's data set {facts['data_set']!r} has schema {facts['schema']}; their ids differ, so train again "
            "or give the data set that it was trained on"
        )
    if training and saved["table_optimizer"] != facts["table_optimizer"]:
        raise ValueError(
            f"checkpoint {path} holds {saved['table_optimizer']} state of the tables, but model.table_optimizer.name "
            f"is {facts['table_optimizer']}; set it to {saved['table_optimizer']} to resume"
        )
    averaged = saved.get("average", False)
    if training and averaged != facts.get("average", False):
        raise ValueError(
            f"checkpoint {path} was trained {'with' if averaged else 'without'} model.average, this run is "
            f"{'without' if averaged else 'with'} it; give the setting of model.average that it was trained with, or "
            "begin a new run with model.warm_start"
        )


def _check_shapes(path: Path, wanted: dict[str, Any], index: Metadata) -> None:
    saved = index.state_dict_metadata
    there, here = (sorted({n.split(".")[2] for n in names if n.startswith(MANAGED)}) for names in (saved, wanted))
    if there != here:
        raise ValueError(
            f"checkpoint {path} has managed ids in the tables {there}, this run in {here}; give "
            "trainer.strategy.init_args.managed_ids as it was trained with (only laser fit, validate, test and predict "
            "can use such checkpoints)"
        )
    for name, tensor in wanted.items():
        if name not in saved:
            raise ValueError(
                f"checkpoint {path} has no tensor {name}; give the network options of model.network that it was "
                "trained with"
            )
        size = saved[name].size  # type: ignore[union-attr]
        if size != tensor.size():
            raise ValueError(
                f"tensor {name} is {tuple(size)} in checkpoint {path} but {tuple(tensor.size())} in this recipe; give "
                "the network options of model.network that it was trained with"
            )


def _on_first_rank(action: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """Run ``action`` on rank 0 while the others wait; its failure is raised on every rank."""
    if not dist.is_initialized():
        return action()
    outcome: list[OSError | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, group=group)
    if outcome[0] is not None:
        raise outcome[0]
