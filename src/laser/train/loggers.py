"""Loggers that need no folder and no network: CSV into the run's folder, Weights & Biases offline."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

INIT_SECONDS = 30.0
"""How long Weights & Biases may take to begin a run."""
FINISH_SECONDS = 120.0
"""How long it may take at the end of one to hand over what its server has not got yet."""


class CSVLog(CSVLogger):
    """``metrics.csv`` in the run's folder.

    Args:
        save_dir: folder; ``None``: the run's.
        flush_logs_every_n_steps: how often rows are written.
        first_step: rows of an earlier run in this folder before this step are kept, the others dropped; set by the
            command line to the step of the checkpoint that a run is resumed from.
    """

    def __init__(self, save_dir: str | None = None, flush_logs_every_n_steps: int = 100, first_step: int = 0) -> None:
        super().__init__(save_dir or ".", name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)
        self.first_step = first_step

    @property
    def experiment(self) -> Any:
        """The writer of ``metrics.csv``."""
        if self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0:
            path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            kept = self._rows_to_keep(path)
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._experiment = RowWriter(self.log_dir, kept)
        return super().experiment

    def _rows_to_keep(self, path: Path) -> list[dict[str, str]]:
        if not path.exists() or self.first_step == 0:
            return []
        with path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if int(row["step"]) < self.first_step]


class RowWriter(ExperimentWriter):
    """Lightning's writer, starting from rows that are there already.

    A run that goes on from the step before a validation repeats that validation, whose row may be there.
    """

    def __init__(self, log_dir: str, rows: list[dict[str, str]]) -> None:
        super().__init__(log_dir)
        self.metrics: list[dict[str, Any]] = list(rows)
        self.latest: tuple[int | None, frozenset[str]] | None = None
        self.known = {(int(row["step"]), frozenset(name for name in row if row[name])) for row in rows}
        self.save()

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Add a row, unless it is one of those that were there, or the latest."""
        row = (step, frozenset({*metrics_dict, "step"}))
        if row not in self.known and row != self.latest:
            super().log_metrics(metrics_dict, step)
        self.latest = row


def write_rows(trainer: Trainer) -> None:
    """Write all rows up to and with that of the step that is ending, before a checkpoint of it is written.

    Lightning logs a step after the callbacks that save it, so a run that is broken off between the two would lack
    that row when it goes on. Every process calls this.
    """
    steps = trainer.fit_loop.epoch_loop.batch_progress.current
    ends_a_step = trainer.training and steps.completed < steps.processed  # type: ignore[attr-defined]
    if ends_a_step and trainer._logger_connector.should_update_logs:
        row: dict[str, Any] = {"epoch": trainer.current_epoch, **trainer._logger_connector.metrics["log"]}
        for logger in trainer.loggers:
            if isinstance(logger, CSVLog) and len(row) > 1:
                logger.log_metrics(row, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
    for logger in trainer.loggers:
        logger.save()


class WandbLog(WandbLogger):
    """Weights & Biases, offline unless told otherwise; never asks.

    Under ``wandb agent`` it is online, as a sweep needs its server. When it is online and the server does not
    answer within half a minute, or there is no key, the run is logged offline. A server that is lost later is tried
    again while training goes on; what it has not got two minutes after the end stays on the disk for ``wandb sync``.
    Where the package wandb is not installed, the command line leaves this logger out and says so.

    Args:
        project: name of the project.
        name: of the run; ``None``: the name of its folder.
        save_dir: where ``wandb/`` is written; ``None``: the run's folder.
        mode: ``None`` takes WANDB_MODE from the environment, and without it "offline".
        group: of the run; ``None`` takes WANDB_RUN_GROUP from the environment, as ``laser study`` sets it.
        system_metrics: log load and memory of processors and GPUs, every 15 seconds.
    """

    def __init__(
        self,
        project: str = "laser",
        name: str | None = None,
        save_dir: str | None = None,
        mode: Literal["offline", "online", "disabled"] | None = None,
        group: str | None = None,
        system_metrics: bool = True,
    ) -> None:
        import wandb

        unless_told = "online" if os.environ.get("WANDB_SWEEP_ID") else "offline"
        mode = mode or os.environ.get("WANDB_MODE", unless_told)  # type: ignore[assignment]
        # No console capture, code or git upload: none is needed, all cost time or privacy.
        settings = wandb.Settings(
            console="off",
            save_code=False,
            disable_git=True,
            x_disable_stats=not system_metrics,
            silent=True,
            init_timeout=INIT_SECONDS,
        )
        if hasattr(settings, "finish_timeout"):  # not in old versions, which wait for a lost server for ever
            settings.finish_timeout = FINISH_SECONDS
        folder = save_dir or "."
        names = {"name": name or Path(folder).name, "group": group}
        super().__init__(project=project, save_dir=folder, mode=mode, settings=settings, **names)  # type: ignore[arg-type]
        self._wandb_init.pop("anonymous", None)  # wandb warns of it even when it is not set

    @property
    def experiment(self) -> Any:
        """The run at Weights & Biases, begun when it is first asked for."""
        import wandb

        try:
            return super().experiment
        except wandb.errors.Error as error:
            if self._wandb_init["mode"] == "offline":
                raise
            reason = str(error).splitlines()[0]
            print(f"laser: Weights & Biases cannot be reached ({reason}); this run is logged offline", file=sys.stderr)
            self._wandb_init["mode"] = "offline"
            return super().experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log, unless the process that Weights & Biases writes with is gone, which ends no training."""
        import wandb

        try:
            super().log_metrics(metrics, step)
        except (wandb.errors.Error, OSError) as error:
            say_lost(error)
            self._experiment = wandb.init(mode="disabled")

    def finalize(self, status: str) -> None:
        """End the run at Weights & Biases, and wait until all of it is written.

        A process of its own writes it. Python waits for that one at exit only where it is this process's child: one
        started before, whose address WANDB_SERVICE tells, would keep the end of the run to itself. A run that failed
        does not wait for the network, which may be why it failed, and one that did not waits for two minutes at most.
        """
        import wandb

        super().finalize(status)
        run: Any = self._experiment
        if run is None or (status != "success" and self._wandb_init["mode"] == "online"):
            return
        self._experiment = None
        try:
            run.finish(exit_code=0 if status == "success" else 1)
        except (wandb.errors.Error, OSError) as error:
            say_lost(error)
        if getattr(run, "_finish_timed_out", False):
            print(
                f"laser: Weights & Biases did not take all of this run within {FINISH_SECONDS:.0f} seconds; nothing is "
                f"lost, hand it over later with wandb sync --include-online {Path(run.dir).parent}",
                file=sys.stderr,
            )


def say_lost(error: Exception) -> None:
    """Tell that a run is no longer logged."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    print(f"laser: Weights & Biases was lost ({reason}); this run goes on without it", file=sys.stderr)
