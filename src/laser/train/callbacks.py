"""What a run leaves behind besides checkpoints: throughput, predictions, gates and metrics; and its progress bar.

All files lie in the run's folder, ``trainer.default_root_dir``; what existed under their names is replaced.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.text import Text

from laser.batch import Batch
from laser.train.module import CTRModule, finite
from laser.train.optim import dense_parameters
from laser.train.sharding import sharded_collections

FLUSH_ROWS = 1 << 20


def run_folder(trainer: pl.Trainer) -> Path:
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

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting."""
        self.steps = self.samples = self.events = 0
        self.seconds = 0.0
        self.began = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave out the time before the first timed step, and of validation."""
        if batch_idx == 0 or self.steps <= self.skipped_steps:
            self.last = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Count a step, from the end of the last one, so that waiting for data counts."""
        self.steps += 1
        if self.steps <= self.skipped_steps:
            return
        now = time.perf_counter()
        self.seconds += now - self.last
        self.last = now
        self.samples += batch.global_size
        self.events += int(batch.age_T.shape[0])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the clock: validation is not training."""
        self.last = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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


class PredictionWriter(Callback):
    """Writes ``predictions/SPLIT.parquet`` for ``test`` and ``predict``.

    Columns: row (position in the split), user, item, timestamp, label, probability, history_length; ordered by row.
    Every process writes a part; rank 0 merges them, and holds the columns of one split while it does.
    """

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the test split."""
        self._begin(trainer, "test")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the split to predict."""
        self._begin(trainer, trainer.datamodule.predict_split)  # type: ignore[attr-defined]

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *_: int) -> None:
        """Add a batch."""
        self._add(pl_module, outputs, batch)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *_: int) -> None:
        """Add a batch."""
        self._add(pl_module, outputs, batch)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Merge the parts."""
        self._finish(trainer)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Merge the parts."""
        self._finish(trainer)

    def _begin(self, trainer: pl.Trainer, split: str) -> None:
        self.path = run_folder(trainer) / "predictions" / f"{split}.parquet"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.part = self.path.with_name(f".{split}.{trainer.global_rank}.parquet")
        self.waiting: list[pa.Table] = []
        self.writer: pq.ParquetWriter | None = None

    def _add(self, pl_module: pl.LightningModule, outputs: dict[str, torch.Tensor], batch: Batch) -> None:
        assert isinstance(pl_module, CTRModule)
        outputs = {**outputs, "item": batch.target[pl_module.schema.item.name].cpu()}
        names = ("row", "user", "item", "timestamp", "label", "probability", "history_length")
        self.waiting.append(pa.table({name: outputs[name].numpy() for name in names}))
        if sum(len(table) for table in self.waiting) >= FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self.waiting:
            return
        table = pa.concat_tables(self.waiting)
        self.waiting = []
        self.writer = self.writer or pq.ParquetWriter(self.part, table.schema, compression="zstd")
        self.writer.write_table(table)

    def _finish(self, trainer: pl.Trainer) -> None:
        self._flush()
        if self.writer is not None:
            self.writer.close()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            parts = sorted(self.path.parent.glob(f".{self.path.stem}.*.parquet"))
            merged = pa.concat_tables([pq.read_table(part) for part in parts]).sort_by("row")
            temporary = self.path.with_name(f"{self.path.name}.tmp")
            pq.write_table(merged, temporary, compression="zstd")
            temporary.replace(self.path)
            for part in parts:
                part.unlink()
        trainer.strategy.barrier()


class RunRecord(Callback):
    """Writes ``metrics.json`` and ``gates.json`` after a test. Nothing in them depends on time or machine."""

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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
    """Class and size of the network, and multiply-accumulates of one sample with ``length`` events."""
    tables = sum(weight.size().numel() for _, c in sharded_collections(module) for weight in c.state_dict().values())
    dense = sum(parameter.numel() for parameter in dense_parameters(module).values())
    facts = {"class": type(module.network).__qualname__, "table_parameters": tables, "dense_parameters": dense}
    if hasattr(module.network, "costs"):
        costs: Any = module.network.costs(length)  # type: ignore[operator]
        facts |= {"history_length": length, "macs": costs.macs, "sequence_macs": costs.sequence_macs}
    return facts


def data_facts(trainer: pl.Trainer) -> dict[str, Any]:
    """Name, schema and size of the data set."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    splits = {folder.name: rows_in(folder) for folder in sorted((data.path / "samples").iterdir())}
    return {"name": data.schema.name, "schema": data.schema.fingerprint(), "samples": splits, "max_history": data.max_history}


def rows_in(folder: Path) -> int:
    """Rows of the Parquet files in a folder, from their footers."""
    return sum(pq.read_metadata(file).num_rows for file in folder.glob("*.parquet"))


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

    def configure_columns(self, trainer: pl.Trainer) -> list[Any]:
        """Lightning's columns with the speed in samples."""
        samples_per_batch = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        return [*super().configure_columns(trainer)[:-1], SamplesPerSecond(samples_per_batch)]

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Loss and validation metrics, without the logger's version."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
