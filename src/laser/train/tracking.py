"""What loggers other than the CSV file are told of a run: configuration, code, data, gates, places of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger

from laser.batch import Batch
from laser.data.fingerprint import fingerprint
from laser.train.callbacks import data_facts, run_folder, write_json
from laser.train.loggers import CSVLog
from laser.train.module import CTRModule
from laser.versions import code_versions

BINS = 40
CLOSED = 0.05


class Tracking(Callback):
    """Works with any Lightning logger; Weights & Biases also gets histograms and artifacts, TensorBoard histograms.

    Told are, when training begins, the complete configuration, versions of the code and the fingerprint of the data
    set; at each validation, gates of its first batch (process 0's share); at the end, the addresses of the checkpoints,
    which stay where they are. ``wandb.json`` in the run's folder names the run at Weights & Biases: ``laser report``
    reads it.

    Args:
        config: of the command, as plain data.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = json.loads(json.dumps(config, default=str))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what the run is."""
        loggers = trackers(trainer)
        if not loggers or not trainer.is_global_zero:
            return
        path = trainer.datamodule.path  # type: ignore[attr-defined]
        data = {**data_facts(trainer), "fingerprint": fingerprint(path)}
        facts = {"config": self.config, "code": code_versions(), "data": data, "processes": trainer.world_size}
        for logger in loggers:
            logger.log_hyperparams(facts)
            if isinstance(logger, WandbLogger):
                run = logger.experiment
                run.define_metric("val/auc", summary="max")
                known = {name: getattr(run, name) for name in ("id", "name", "project", "group")}
                write_json(run_folder(trainer) / "wandb.json", known)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Gates of the first batch. Every process takes part, as look-ups are shared."""
        if batch_idx > 0 or trainer.state.fn != "fit" or not trackers(trainer):
            return
        assert isinstance(pl_module, CTRModule)
        with trainer.precision_plugin.val_step_context():
            gates = pl_module.network(batch, return_gates=True).gates
        if gates is not None and trainer.is_global_zero and len(gates.gate_EH):
            log_gates(trackers(trainer), gates.gate_EH.detach().float().cpu().numpy(), trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell where the checkpoints are."""
        if trainer.is_global_zero:
            for logger in trackers(trainer):
                if isinstance(logger, WandbLogger):
                    log_checkpoints(logger, run_folder(trainer))


def trackers(trainer: Trainer) -> list[Logger]:
    """Loggers that are told more than numbers: all but the CSV file, which must not depend on machine or time."""
    return [logger for logger in trainer.loggers if not isinstance(logger, CSVLog)]


def log_gates(loggers: list[Logger], gate_EH: np.ndarray, step: int) -> None:
    """Mean and share of closed gates of each head; histograms where the logger has them.

    Args:
        loggers: to tell.
        gate_EH: gates in [0, 1] of events and heads.
        step: optimizer steps so far.
    """
    edges = np.linspace(0, 1, BINS + 1)
    counts_H = [np.histogram(gate_E, edges)[0] for gate_E in gate_EH.T]
    numbers = {}
    for head, gate_E in enumerate(gate_EH.T):
        numbers[f"gates/mean/head_{head}"] = float(gate_E.mean())
        numbers[f"gates/share_below_{CLOSED}/head_{head}"] = float((gate_E < CLOSED).mean())
    for logger in loggers:
        logger.log_metrics(numbers, step=step)
        experiment: Any = logger.experiment  # type: ignore[attr-defined]
        if isinstance(logger, WandbLogger):
            import wandb

            histograms = {f"gates/head_{h}": wandb.Histogram(np_histogram=(n, edges)) for h, n in enumerate(counts_H)}
            experiment.log({**histograms, "trainer/global_step": step})
        elif hasattr(experiment, "add_histogram"):
            for head, gate_E in enumerate(gate_EH.T):
                experiment.add_histogram(f"gates/head_{head}", gate_E, step)


def log_checkpoints(logger: WandbLogger, run: Path) -> None:
    """An artifact that refers to the run's checkpoints by their addresses: nothing is copied or uploaded."""
    import wandb

    artifact = wandb.Artifact(f"checkpoints-{logger.experiment.id}", type="model")
    for checkpoint in sorted((run / "checkpoints").glob("*.ckpt")):
        artifact.add_reference(checkpoint.resolve().as_uri(), name=checkpoint.name, checksum=False)
    logger.experiment.log_artifact(artifact)
