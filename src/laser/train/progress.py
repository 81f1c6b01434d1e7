"""The progress bar of a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.text import Text


class SamplesPerSecond(ProgressColumn):
    """Speed of a task in samples, not batches."""

    def __init__(self, samples_per_batch: int) -> None:
        super().__init__()
        self.samples_per_batch = samples_per_batch

    def render(self, task: Task) -> Text:
        """The column's text."""
        speed = task.finished_speed or task.speed or 0.0
        return Text(f"{speed * self.samples_per_batch:,.0f} samples/s")


class SamplesProgressBar(RichProgressBar):
    """Progress with batches done, time gone and left in the epoch, and samples per second over all processes."""

    loss: float | None = None

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Lightning's columns with the speed in samples."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        samples_per_batch = data.batch_size if trainer.state.fn == "fit" else data.evaluation_batch_size
        return [*super().configure_columns(trainer)[:-1], SamplesPerSecond(samples_per_batch)]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Loss and validation metrics, without the logger's version.

        The loss of each step would have to be waited for: it is that of the last one that loggers asked for.
        """
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        loss = trainer.callback_metrics.get("train/loss")
        if trainer.training and loss is not None:
            every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
            if self.loss is None or trainer.global_step % every == 0:
                self.loss = float(loss)
            shown["train/loss"] = f"{self.loss:.4g}"
        return shown
