"""How each process of a run fared: who waits for data, who has the most events, who needs the most memory."""

from __future__ import annotations

import csv
import resource
import time
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from laser.batch import Batch
from laser.train.callbacks import run_folder, write_json
from laser.train.loggers import CSVLog
from laser.train.look_up_time import LookUpTime
from laser.train.table_cache import TableCache


class RankStatistics(Callback):
    """Writes ``ranks.json`` at the end, and meanwhile, every ``log_every_n_steps``, a row of ``ranks/RANK.csv``.

    Loggers other than ``metrics.csv``, which must not depend on time, get rank 0's row as ``rank/*``. Of each process,
    over its training steps without the first five and without validation: ``samples``, ``events`` and
    ``milliseconds`` of a step, ``waiting_milliseconds`` between the end of a step and the beginning of the next (for
    data, logging and checkpoints), ``look_up_milliseconds`` of the forward look-ups with their exchange,
    ``saving_seconds`` of the whole run, and the largest memory that was in use. Where tables are cached
    (``uvm_caching``), ``table_cache_hit_rate`` is the share of a step's distinct rows that were in the GPU's cache, and
    ``table_cache_misses`` the number of those that were not.
    """

    skipped_steps = 5

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self.strategy: Any = trainer.strategy
        self.steps, self.samples, self.events, self.seconds, self.waited = -self.skipped_steps, 0, 0, 0.0, 0.0
        self.ended: float | None = None
        embeddings: Any = pl_module.network.embeddings  # type: ignore[union-attr]
        self.look_up = LookUpTime(embeddings, trainer.strategy.root_device)
        self.cache = TableCache(pl_module)
        self.path = run_folder(trainer) / "ranks" / f"{trainer.global_rank}.csv"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time since the last step."""
        self.began = time.perf_counter()
        self.pause = 0.0 if self.ended is None else self.began - self.ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count a step."""
        self.ended = time.perf_counter()
        self.steps += 1
        if self.steps <= 0:
            if self.steps == 0:
                self.cache.forget()
            return
        self.seconds += self.pause + self.ended - self.began
        self.waited += self.pause
        self.samples += len(batch)
        self.events += int(batch.age_T.shape[0])
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        """A row of this process's own file, for it costs the others nothing; loggers work on rank 0 only."""
        figures = self.figures()
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            rows = csv.DictWriter(file, ["step", *figures])
            if new:
                rows.writeheader()
            rows.writerow({"step": trainer.global_step, **{name: f"{value:.6g}" for name, value in figures.items()}})
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLog):
                values = {f"rank/{name}": value for name, value in figures.items()}
                logger.log_metrics(values, step=trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is not training."""
        self.ended = None
        if trainer.state.fn == TrainerFn.FITTING:
            self.cache.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.cache.go_on()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the figures of all processes and write the file."""
        self.look_up.end()
        ranks: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(ranks, self.figures())
        if trainer.is_global_zero:
            write_json(run_folder(trainer) / "ranks.json", {"ranks": ranks})

    def figures(self) -> dict[str, float]:
        """Means per step so far, and peaks of memory in bytes."""
        steps = max(self.steps, 1)
        figures = {
            "steps": max(self.steps, 0),
            "samples": self.samples / steps,
            "events": self.events / steps,
            "milliseconds": 1000 * self.seconds / steps,
            "waiting_milliseconds": 1000 * self.waited / steps,
            "look_up_milliseconds": self.look_up.milliseconds,
            "saving_seconds": self.strategy.saving_seconds,
            "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        figures |= self.cache.figures(self.steps)
        if torch.cuda.is_available():
            figures["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
        return figures
