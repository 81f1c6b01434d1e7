"""The loader under Lightning's own loops: what is trained on after a resume is what would have been without it."""

from __future__ import annotations

import gc
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from laser.data.loader import BatchLoader
from laser.data.prepared import PreparedData

EPOCHS = 3
BATCH_SIZE = 400
BATCHES = 5
"""1632 samples of the default data set in batches of 400."""


class Recorder(lightning.LightningModule):
    """Trains one number and writes down each step's batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch, _):
        self.seen.append((batch.step, batch.row_B.tolist()))
        return self.weight * batch.label_B.mean()

    def validation_step(self, batch, _):
        self.log("val/label", batch.label_B.mean(), batch_size=len(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(scope="module")
def data(prepared: Path):
    with PreparedData(prepared) as opened:
        yield opened


def fit(
    data: PreparedData, folder: Path, checkpoint: Path | None = None, module: Recorder | None = None, *,
    options: dict | None = None, **saving,
) -> Recorder:  # fmt: skip
    loaders = [
        BatchLoader(data, split, batch_size=BATCH_SIZE, max_history=5, shuffle=split == "train", seed=7)
        for split in ("train", "val")
    ]
    module = module or Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
        callbacks=[ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **saving)] if saving else [],
        enable_checkpointing=bool(saving),
        **{"max_epochs": EPOCHS} | (options or {}),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, *loaders, ckpt_path=checkpoint, weights_only=False)
    return module


@pytest.mark.parametrize(
    "saving",
    [{"every_n_train_steps": 1}, {"every_n_epochs": 1}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}],
    ids=["after each step", "after validation", "at the end of an epoch"],
)
def test_every_checkpoint_resumes_at_the_next_batch(data, tmp_path, saving):
    whole = fit(data, tmp_path, **saving).seen
    assert [step for step, _ in whole] == list(range(EPOCHS * BATCHES))
    checkpoints = {int(file.stem.split("=")[1]): file for file in tmp_path.glob("*.ckpt")}
    assert len(checkpoints) == (EPOCHS * BATCHES if "every_n_train_steps" in saving else EPOCHS)
    for step in (1, 4, 5, 6, 10, 13):
        if step in checkpoints:
            assert fit(data, tmp_path / "again", checkpoints[step]).seen == whole[step:], f"resumed after {step}"


class Ending(Recorder):
    """Is told to stop, or fails, in the last step of the first epoch, when the second one has been begun."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def training_step(self, batch, index):
        if len(self.seen) == BATCHES - 1:
            self.trainer.should_stop = self.way == "told to stop"
            if self.way == "failing":
                raise RuntimeError("as it was asked to")
        return super().training_step(batch, index)


@pytest.mark.parametrize("way", ["through", "told to stop", "failing"])
def test_no_thread_outlives_training(data, tmp_path, way):
    """Without any help of the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        module = Ending(way)
        with pytest.raises(RuntimeError, match="as it was") if way == "failing" else nullcontext():
            fit(data, tmp_path, module=module)
        assert len(module.seen) == {"through": EPOCHS * BATCHES, "told to stop": BATCHES, "failing": BATCHES - 1}[way]
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("laser-train")] == []
    finally:
        gc.enable()


def test_epochs_cut_short_begin_as_whole_ones_do(data, tmp_path):
    """Threads are then within the epoch that ends early."""
    whole = fit(data, tmp_path).seen
    short = fit(data, tmp_path, options={"limit_train_batches": 3}).seen
    assert short == [batch for batch in whole if batch[0] % BATCHES < 3]
