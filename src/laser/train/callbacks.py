"""What a run leaves behind besides checkpoints and predictions: throughput, gates and metrics.

All files lie in the run's folder, ``trainer.default_root_dir``; what existed under their names is replaced.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from laser.batch import Batch
from laser.model.costs import laser_costs
from laser.train.module import CTRModule, finite
from laser.train.optim import dense_parameters
from laser.train.sharding import sharded_collections


def run_folder(trainer: Trainer) -> Path:
    """Folder of the run."""
    return Path(trainer.default_root_dir)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    temporary.replace(path)


class Throughput(Callback):
    """Writes ``throughput.json``: samples per second and time of training, without validation.

    The first steps of a run are left out: they include warming up.
    """

    skipped_steps = 5

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self.steps = self.samples = self.events = 0
        self.seconds = 0.0
        self.began = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave out the time before the first timed step, and of validation."""
        if batch_idx == 0 or self.steps <= self.skipped_steps:
            self.last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count a step, from the end of the last one, so that waiting for data counts."""
        self.steps += 1
        if self.steps <= self.skipped_steps:
            return
        now = time.perf_counter()
        self.seconds += now - self.last
        self.last = now
        self.samples += batch.global_size
        self.events += int(batch.age_T.shape[0])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock: validation is not training."""
        self.last = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        if not trainer.is_global_zero or self.seconds == 0:
            return
        content = {
            "device": device_name(trainer.strategy.root_device),
            "processes": trainer.world_size,
            "samples_per_second": round(self.samples / self.seconds, 1),
            "history_events_per_second_of_rank_0": round(self.events / self.seconds, 1),
            "milliseconds_per_step": round(1000 * self.seconds / max(self.steps - self.skipped_steps, 1), 3),
            "training_seconds": round(self.seconds, 2),
            "wall_seconds": round(time.perf_counter() - self.began, 2),
            "steps": self.steps,
        }
        write_json(run_folder(trainer) / "throughput.json", content)


def device_name(device: torch.device) -> str:
    """Name of the hardware that a device is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads per process"


class RunRecord(Callback):
    """Writes ``metrics.json`` and ``gates.json`` after a test. Nothing in them depends on time or machine."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both files; gates only if the network has them."""
        assert isinstance(pl_module, CTRModule)
        gates = pl_module.gates.compute()
        pl_module.gates.reset()
        if not trainer.is_global_zero:
            return
        folder = run_folder(trainer)
        if gates:
            write_json(folder / "gates.json", gates)
        content = {
            "test": finite(pl_module.test),
            "validation": finite(pl_module.validation),
            "references": {},
            "model": model_facts(pl_module, trainer.datamodule.max_history),  # type: ignore[attr-defined]
            "data": data_facts(trainer),
        }
        write_json(folder / "metrics.json", content)


def model_facts(module: CTRModule, length: int) -> dict[str, Any]:
    """Classes of network and encoder, size, and arithmetic of one sample with ``length`` events.

    Multiply-accumulates are of all and of the sequence part, as computed and (``paper_``) in the published form.
    """
    tables = sum(weight.size().numel() for _, c in sharded_collections(module) for weight in c.state_dict().values())
    dense = sum(parameter.numel() for parameter in dense_parameters(module).values())
    facts: dict[str, Any] = {"class": type(module.network).__qualname__}
    if hasattr(module.network, "encoder"):
        facts["encoder"] = type(module.network.encoder).__qualname__
    facts |= {"table_parameters": tables, "dense_parameters": dense}
    if hasattr(module.network, "costs"):
        costs: Any = module.network.costs(length)  # type: ignore[operator]
        facts |= {"history_length": length, "macs": costs.macs, "sequence_macs": costs.sequence_macs}
        facts |= {"flops": costs.flops, "paper_sequence_macs": published_costs(module, length).sequence_macs}
    return facts


def published_costs(module: CTRModule, length: int) -> Any:
    """Costs of the network in the form that its publication has."""
    network: Any = module.network
    return network.costs(length, "paper") if hasattr(network, "encoder") else laser_costs(network, length, "paper")


def data_facts(trainer: Trainer) -> dict[str, Any]:
    """Name, schema and size of the data set."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    splits = {folder.name: rows_in(folder) for folder in sorted((data.path / "samples").iterdir())}
    return {
        "name": data.schema.name,
        "schema": data.schema.fingerprint(),
        "samples": splits,
        "max_history": data.max_history,
    }


def rows_in(folder: Path) -> int:
    """Rows of the Parquet files in a folder, from their footers."""
    return sum(pq.read_metadata(file).num_rows for file in folder.glob("*.parquet"))
