"""The progress bar tells the loss of the steps that are logged, and makes the host wait for no other."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist

from laser.model.laser import Laser
from laser.train.datamodule import CTRDataModule
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


def test_the_loss_shown_is_that_of_the_last_logged_step(prepared: Path, tmp_path: Path):
    bar = SamplesProgressBar()
    watch = Watch(bar)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=TorchRecStrategy(),
        max_steps=7,
        log_every_n_steps=3,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        callbacks=[watch, bar],
    )
    try:
        module = CTRModule(partial(Laser, width=16, mixer_tokens=4, mixer_width=16))
        trainer.fit(module, datamodule=CTRDataModule(str(prepared), batch_size=64, max_history=20))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    assert len(set(watch.losses)) == 7
    steps = [0, 0, 2, 2, 2, 5, 5]
    assert watch.shown == [f"{watch.losses[step]:.4g}" for step in steps]
