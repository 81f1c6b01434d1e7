"""Predictions of a split as one Parquet file, however many processes made them.

Legend of shape suffixes: B samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import Callback, LightningModule, Trainer

from laser.batch import Batch
from laser.data.collate import distinct_requests
from laser.data.prepared import PreparedData
from laser.train.callbacks import run_folder
from laser.train.gate_writer import GateWriter, gate_file
from laser.train.module import CTRModule
from laser.train.part_files import PartFiles

FLUSH_ROWS = 1 << 20


class PredictionWriter(Callback):
    """Writes ``predictions/SPLIT.parquet`` for ``test`` and ``predict``.

    Columns: row (position in the split), user, item, timestamp, label, probability, history_length (events that the
    model was given), earlier_events (all events before the sample, also those beyond max_history); ordered by row.
    Every process writes a part; rank 0 merges them, and holds the columns of one split while it does.

    Args:
        gates: also write ``predictions/SPLIT_gates.parquet``, see ``laser.train.gate_writer``.
    """

    def __init__(self, gates: bool = False) -> None:
        self.with_gates = gates

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the test split."""
        self._begin(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the split to predict."""
        self._begin(trainer, pl_module, trainer.datamodule.predict_split)  # type: ignore[attr-defined]

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
        self._add(trainer, pl_module, outputs, batch)

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
        self._add(trainer, pl_module, outputs, batch)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts."""
        self._finish(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts and say where they are."""
        self._finish(trainer)
        if trainer.is_global_zero:
            print(self.parts.path)
            if self.gates is not None:
                print(self.gates.parts.path)

    def _begin(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        assert isinstance(pl_module, CTRModule)
        path = run_folder(trainer) / "predictions" / f"{split}.parquet"
        self.parts = PartFiles(path, trainer.global_rank, trainer.world_size)
        self.parts.begin()
        self.waiting: list[pa.Table] = []
        self.writer: pq.ParquetWriter | None = None
        self.gates: GateWriter | None = None
        pl_module.keep_gates = self.with_gates
        if self.with_gates:
            parts = PartFiles(gate_file(path), trainer.global_rank, trainer.world_size)
            self.gates = GateWriter(parts, pl_module.schema, type(pl_module.network).__name__)

    def _add(self, trainer: Trainer, pl_module: LightningModule, outputs: dict[str, Any], batch: Batch) -> None:
        assert isinstance(pl_module, CTRModule)
        user_B, timestamp_B = outputs["user"].numpy(), outputs["timestamp"].numpy()
        columns = {name: outputs[name].numpy() for name in ("row", "user")}
        columns["item"] = batch.target[pl_module.schema.item.name].cpu().numpy()
        columns |= {name: outputs[name].numpy() for name in ("timestamp", "label", "probability", "history_length")}
        columns["earlier_events"] = earlier_events(trainer.datamodule.data, user_B, timestamp_B)  # type: ignore[attr-defined]
        if self.gates is not None:
            self.gates.add(columns, outputs["gates"], batch)
        self.waiting.append(pa.table(columns))
        if sum(len(table) for table in self.waiting) >= FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self.waiting:
            return
        table = pa.concat_tables(self.waiting)
        self.waiting = []
        self.writer = self.writer or pq.ParquetWriter(self.parts.own, table.schema, compression="zstd")
        self.writer.write_table(table)

    def _finish(self, trainer: Trainer) -> None:
        self._flush()
        for writer in (self.writer, self.gates):
            if writer is not None:
                writer.close()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            merged = pa.concat_tables([pq.read_table(part) for part in self.parts.written()]).sort_by("row")
            pq.write_table(merged, self.parts.temporary, compression="zstd")
            self.parts.finish(self.parts.temporary)
            if self.gates is not None:
                self.gates.merge()
        trainer.strategy.barrier()


def earlier_events(data: PreparedData, user_B: np.ndarray, timestamp_B: np.ndarray) -> np.ndarray:
    """How many events each sample's user has before the sample, int64 [B]; only lengths are read."""
    user_U, time_U, history_of_B = distinct_requests(user_B, timestamp_B)
    return np.diff(data.read(user_U, time_U, fields=[]).off_U1)[history_of_B]
