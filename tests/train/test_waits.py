"""Nothing in the training loop waits for the GPU, in one process or in several.

CUDA's debug mode tells of each wait. Of the steps of a real run all is watched: loader, copy to the device, forward,
backward, clipping, update, logging.
"""

from __future__ import annotations

import os
import socket
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist

from laser.model.laser import Laser
from laser.train.datamodule import CTRDataModule
from laser.train.module import CTRModule
from laser.train.optim import DenseOptimizer, TableOptimizer
from laser.train.strategy import TorchRecStrategy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to wait for")

FIRST, LAST = 6, 12
"""Steps that are watched; before them kernels are compiled and memory is allocated."""


class Watch(pl.Callback):
    """Switches the debug mode: waits of the backward pass, which has a thread of its own, raise at once."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        torch.cuda.set_sync_debug_mode("warn" if FIRST <= batch_idx < LAST else "default")

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if torch.cuda.get_sync_debug_mode():
            torch.cuda.set_sync_debug_mode("error")

    def on_after_backward(self, trainer, pl_module) -> None:
        if torch.cuda.get_sync_debug_mode():
            torch.cuda.set_sync_debug_mode("warn")


@contextmanager
def places_of_waits() -> Iterator[list[list[str]]]:
    """Stacks, innermost first, of where the host waited while the debug mode was "warn"."""
    found: list[list[str]] = []

    def note(message, *_arguments, **_options) -> None:
        if "called a synchronizing" in str(message):  # not what the mode says of itself at first
            frames = [frame for frame in traceback.extract_stack()[:-1] if not frame.filename.endswith("/warnings.py")]
            found.append([f"{frame.filename}:{frame.lineno}" for frame in reversed(frames)][:6])

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_wait_is_seen():
    value = torch.ones((), device="cuda")
    with places_of_waits() as waits:
        torch.cuda.set_sync_debug_mode("warn")
        value.item()
    assert len(waits) == 1
    assert waits[0][0].startswith(__file__)


def waits_of_a_run(prepared: Path, folder: Path, precision: str, devices: int) -> list[str]:
    """Where the host waited in the steps that are watched."""
    network = partial(Laser, width=32, mixer_tokens=4, mixer_width=32, event_dropout=0.1, token_dropout=0.1)
    module = CTRModule(network, TableOptimizer(), DenseOptimizer())
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=devices,
        strategy=TorchRecStrategy(),
        precision=precision,
        max_steps=LAST + 2,
        gradient_clip_val=10.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[Watch()],
    )
    try:
        with places_of_waits() as waits:
            trainer.fit(module, datamodule=CTRDataModule(str(prepared), batch_size=64, max_history=20))
        assert trainer.global_step == LAST + 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return [" < ".join(stack) for stack in waits]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_training_loop_does_not_wait(prepared: Path, tmp_path: Path, precision: str):
    waits = waits_of_a_run(prepared, tmp_path, precision, 1)
    assert not waits, "\n".join(waits)


def process(rank: int, prepared: Path, folder: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment, LOCAL_RANK=str(rank))
    waits = waits_of_a_run(prepared, folder, "bf16-mixed", 2)
    (folder / f"waits.{rank}").write_text("\n".join(waits))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_nor_do_two_processes(prepared: Path, tmp_path: Path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    torch.multiprocessing.spawn(process, (prepared, tmp_path, environment), nprocs=2)
    assert [(tmp_path / f"waits.{rank}").read_text() for rank in range(2)] == ["", ""]
