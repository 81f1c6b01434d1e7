"""The prepared data set as Lightning wants it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import torch

from laser.batch import Batch
from laser.data.loader import BatchLoader
from laser.data.order import Order
from laser.data.prepared import CACHE_BYTES, PreparedData
from laser.schema import Schema


class CTRDataModule(pl.LightningDataModule):
    """Batches of a prepared data set, sliced for this process.

    Args:
        path: folder that ``laser-prep`` wrote.
        batch_size: samples of a training step over all processes.
        max_history: events of a history, the newest.
        evaluation_batch_size: samples of an evaluation step over all processes; ``None``: as in training.
        workers: threads of this process that read and join batches ahead.
        cache_bytes: memory of this process for decoded histories, used if all of them fit; 0 for none.
        order: which samples meet in a training step, and how a step's samples are divided over processes.
        predict_split: split that ``laser predict`` scores.
        seed: of the order of training samples; linked to ``seed_everything`` on the command line.

    Raises:
        ValueError: when there is no prepared data set at ``path``, or it is of another version, or damaged.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 1024,
        max_history: int = 1000,
        evaluation_batch_size: int | None = None,
        workers: int = 1,
        cache_bytes: int = CACHE_BYTES,
        order: Order = Order(),  # noqa: B008
        predict_split: Literal["train", "val", "test"] = "test",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (evaluation_batch_size is not None and evaluation_batch_size < 1):
            raise ValueError(
                f"data.batch_size is {batch_size} and data.evaluation_batch_size {evaluation_batch_size}; both must "
                "be at least 1"
            )
        if cache_bytes < 0:
            raise ValueError(f"data.cache_bytes is {cache_bytes}; give a number of bytes, or 0 for no cache")
        self.path = Path(path)
        self.batch_size = batch_size
        self.max_history = max_history
        self.evaluation_batch_size = evaluation_batch_size or batch_size
        self.workers = workers
        self.cache_bytes = cache_bytes
        self.order = order
        self.predict_split = predict_split
        self.seed = seed
        # Read at once: a wrong path fails before processes are started.
        self.schema = Schema.load(self.path / "schema.json")
        self.data: PreparedData | None = None

    def setup(self, stage: str) -> None:
        """Open and validate the data set."""
        self.data = self.data or PreparedData(self.path, cache_bytes=self.cache_bytes)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled training samples."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> BatchLoader:
        """Validation samples in order."""
        return self._loader("val", self.evaluation_batch_size)

    def test_dataloader(self) -> BatchLoader:
        """Test samples in order."""
        return self._loader("test", self.evaluation_batch_size)

    def predict_dataloader(self) -> BatchLoader:
        """Samples of ``predict_split`` in order."""
        return self._loader(self.predict_split, self.evaluation_batch_size)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Nothing is left to copy: loaders deliver on the device."""
        return batch

    def _loader(self, split: str, batch_size: int, shuffle: bool = False) -> BatchLoader:
        assert self.trainer is not None
        assert self.data is not None
        return BatchLoader(
            self.data,
            split,
            batch_size=batch_size,
            max_history=self.max_history,
            shuffle=shuffle,
            seed=self.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            workers=self.workers,
            order=self.order if shuffle else None,
            device=self.trainer.strategy.root_device,
        )
