"""Predictions of a split as one Parquet file, however many processes made them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from laser.batch import Batch
from laser.train.callbacks import run_folder
from laser.train.module import CTRModule

FLUSH_ROWS = 1 << 20


class PredictionWriter(Callback):
    """Writes ``predictions/SPLIT.parquet`` for ``test`` and ``predict``.

    Columns: row (position in the split), user, item, timestamp, label, probability, history_length; ordered by row.
    Every process writes a part; rank 0 merges them, and holds the columns of one split while it does.
    """

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the test split."""
        self._begin(trainer, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the split to predict."""
        self._begin(trainer, trainer.datamodule.predict_split)  # type: ignore[attr-defined]

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        self._add(pl_module, outputs, batch)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        self._add(pl_module, outputs, batch)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts."""
        self._finish(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts and say where they are."""
        self._finish(trainer)
        if trainer.is_global_zero:
            print(self.path)

    def _begin(self, trainer: Trainer, split: str) -> None:
        self.path = run_folder(trainer) / "predictions" / f"{split}.parquet"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.part = self.path.with_name(f".{split}.{trainer.global_rank}.parquet")
        self.waiting: list[pa.Table] = []
        self.writer: pq.ParquetWriter | None = None

    def _add(self, pl_module: LightningModule, outputs: dict[str, torch.Tensor], batch: Batch) -> None:
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

    def _finish(self, trainer: Trainer) -> None:
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
