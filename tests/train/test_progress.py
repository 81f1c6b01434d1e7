"""The progress bar tells the loss of the steps that are logged, and makes the host wait for no other."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch.distributed as dist

from laser.model.laser import Laser
from laser.train.datamodule import CTRDataModule
from laser.train.loggers import CSVLog
from laser.train.module import CTRModule
from laser.train.progress import SamplesProgressBar
from laser.train.strategy import TorchRecStrategy


class Watch(pl.Callback):
    """What the bar shows after each step, and the step's own loss."""

    def __init__(self, bar: SamplesProgressBar) -> None:
        self.bar = bar
        self.shown: list[Any] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        metrics = self.bar.get_metrics(trainer, pl_module)
        self.shown.append(metrics.pop("train/loss"))
        self.losses.append(float(outputs["loss"]))
        assert not metrics
        assert not trainer.progress_bar_metrics


class Stop(pl.Callback):
    """Ends the run where loggers would not have asked for the loss, and keeps that of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        trainer.should_stop = trainer.global_step == 5


def fit(prepared: Path, folder: Path, **options: Any) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=TorchRecStrategy(),
        log_every_n_steps=3,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,
    )
    try:
        module = CTRModule(partial(Laser, width=16, mixer_tokens=4, mixer_width=16))
        trainer.fit(module, datamodule=CTRDataModule(str(prepared), batch_size=64, max_history=20))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_the_loss_shown_is_that_of_the_last_logged_step(prepared: Path, tmp_path: Path):
    bar = SamplesProgressBar()
    watch = Watch(bar)
    fit(prepared, tmp_path, max_steps=7, logger=False, callbacks=[watch, bar])
    assert len(set(watch.losses)) == 7
    steps = [0, 0, 2, 2, 2, 5, 5]
    assert watch.shown == [f"{watch.losses[step]:.4g}" for step in steps]


def test_loggers_get_the_loss_of_the_step_that_they_write(prepared: Path, tmp_path: Path):
    stop = Stop()
    fit(prepared, tmp_path, logger=CSVLog(str(tmp_path)), enable_progress_bar=False, callbacks=[stop])
    with next(tmp_path.rglob("metrics.csv")).open(newline="") as file:
        rows = {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}
    assert rows == pytest.approx({step: stop.losses[step] for step in (2, 4)}, rel=1e-6)
