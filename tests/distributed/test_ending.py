"""SIGTERM: whichever of two real processes is told, both end after the same step, and say with which code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest

from laser.model.laser import Laser
from laser.train.datamodule import CTRDataModule
from laser.train.module import CTRModule
from laser.train.optim import DenseOptimizer, TableOptimizer
from laser.train.strategy import TorchRecStrategy

ENDED = 143
TOLD = 6
"""The step in which a process is told."""


class Told(pl.Callback):
    """Sends SIGTERM to its own process in a step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == TOLD - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def train(rank: int, folder: str, told: int | None, prepared: str) -> None:
    """Two processes, one of which is told; writes where this one ended."""
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_PORT": "1"}
    network = partial(Laser, width=16, segment_width=3, mixer_tokens=4, mixer_width=16)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=TorchRecStrategy(),
        max_steps=2 * TOLD,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[Told()] if rank == told else [],
    )
    code: object = 0
    try:
        trainer.fit(
            CTRModule(network, TableOptimizer(), DenseOptimizer()),
            datamodule=CTRDataModule(prepared, batch_size=64, max_history=12),
        )
    except SystemExit as error:
        code = error.code
    Path(folder, f"end.{rank}").write_text(f"{trainer.global_step} {code}")


@pytest.mark.parametrize(
    ("told", "end"), [(0, f"{TOLD + 1} {ENDED}"), (1, f"{TOLD + 1} {ENDED}"), (None, f"{2 * TOLD} 0")]
)
def test_both_end_after_the_same_step(two_processes, prepared, told, end):
    """Asked at the beginning of the next step, and answered at that of the one behind it."""
    folder = two_processes(partial(train, told=told, prepared=str(prepared)))
    assert [(folder / f"end.{rank}").read_text() for rank in range(2)] == [end, end]


def started(folder: Path, prepared: Path, devices: int, callbacks: str = "[]") -> list[str]:
    """Command of a run that does not end by itself soon."""
    (folder / "recipe.yaml").write_text(f"""
data: {{path: {prepared}, batch_size: 64, max_history: 12}}
model:
  network:
    class_path: laser.model.laser.Laser
    init_args: {{width: 16, segment_width: 3, mixer_tokens: 4, mixer_width: 16}}
trainer:
  accelerator: cpu
  devices: {devices}
  max_epochs: 100
  default_root_dir: {folder / "run"}
  enable_progress_bar: false
  logger: false
  callbacks: {callbacks}
""")
    return [sys.executable, "-m", "laser.cli", "fit", "-c", str(folder / "recipe.yaml")]


def environment(*path: str) -> dict[str, str]:
    kept = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return kept | {"PYTHONPATH": os.pathsep.join([*path, kept.get("PYTHONPATH", "")])}


def launched_by(pid: int) -> list[str]:
    """Processes of the same run."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in children if b"fit" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_told_while_processes_find_each_other(prepared, tmp_path):
    """The one that was told ends, and with it the one that it started, which would wait for it for half an hour."""
    process = subprocess.Popen(started(tmp_path, prepared, 2), env=environment(), stderr=subprocess.PIPE, text=True)
    while not (launched := launched_by(process.pid)):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (-signal.SIGTERM, "")
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in launched):
        assert time.monotonic() < deadline, "the other process still waits"
        time.sleep(0.05)


LAUNCH = """
import os, signal, subprocess
from lightning.fabric.plugins.environments import LightningEnvironment
from laser.train.failures import PatientLauncher

class Told(PatientLauncher):
    def _call_children_scripts(self):
        child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        self.procs = [child]

Told(lambda: None, LightningEnvironment(), 2, 1).launch(lambda: print("trains"))
"""


def test_told_before_it_knows_what_it_started():
    """The signal comes between the start of the other process and its being noted."""
    done = subprocess.run([sys.executable, "-c", LAUNCH], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGTERM, done.stderr[-3000:]
    (child,) = done.stdout.split()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline, "the other process was left"
        time.sleep(0.05)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_that_was_ended_is_not_taken_for_a_complete_one(prepared, tmp_path, devices):
    (tmp_path / "told.py").write_text(f"""
import os, signal
from lightning.pytorch import Callback
class Told(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 0 and trainer.global_step == {TOLD}:
            os.kill(os.getpid(), signal.SIGTERM)
""")
    command = started(tmp_path, prepared, devices, "[told.Told]")
    done = subprocess.run(command, env=environment(str(tmp_path)), stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == ENDED, done.stderr[-3000:]
    assert done.stderr == ""
