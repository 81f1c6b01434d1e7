"""One rank of a training process group: runs a list of jobs through Lightning, or one through a hand-written loop.

``python worker.py JOBS.json``; the environment says which rank of how many. All ranks run the same jobs in order.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch.nn.functional import binary_cross_entropy_with_logits

from laser.data.loader import BatchLoader
from laser.data.order import Order
from laser.data.prepared import PreparedData
from laser.model.laser import Laser
from laser.train.average import Average
from laser.train.callbacks import RunRecord
from laser.train.datamodule import CTRDataModule
from laser.train.managed_ids import ManagedIds
from laser.train.module import CTRModule, finite
from laser.train.optim import DenseOptimizer, TableOptimizer
from laser.train.placement import Sharding
from laser.train.predictions import PredictionWriter
from laser.train.rank_statistics import RankStatistics
from laser.train.schedule import Schedule
from laser.train.strategy import TorchRecStrategy
from laser.train.table_storage import Storage, TableStorage
from laser.train.warm_start import WarmStart

NETWORK = {
    "width": 16,
    "segment_width": 3,
    "query_width": 4,
    "mixer_tokens": 4,
    "mixer_width": 16,
    "event_dropout": 0.1,
    "token_dropout": 0.1,
    "recency_ranks": 16,
    "newest_events": 5,
    "lookup_stride": 16,
}
MAX_HISTORY = 12
WARM_UP = 12
CLIP = 0.5
WORLD_SIZE = int(os.environ["WORLD_SIZE"])  # Lightning removes it after the first run
HOSTS = int(os.environ.get("HOSTS", "1"))


class Watch(pl.Callback):
    """Records each step's loss over all processes, its rows and a random number; saves checkpoints on request."""

    def __init__(self, job: dict) -> None:
        self.losses: dict[int, float] = {}
        self.shares: list[int] = []
        self.rows: list[list[int]] = []
        self.random: list[float] = []
        self.validations: list[dict] = []
        self.save_after, self.in_validation = job.get("save_after"), job.get("save_in_validation", False)
        self.validation_batch = job.get("validation_batch", 1)
        self.folder = Path(job["folder"])

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if self.in_validation and batch_idx == self.validation_batch and not self.validations:
            trainer.save_checkpoint(self.folder / "validating.ckpt")

    def on_validation_end(self, trainer, pl_module) -> None:
        self.validations.append(finite(pl_module.validation))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        loss = outputs["loss"].detach().clone()
        dist.all_reduce(loss)
        self.losses[trainer.global_step] = float(loss) / trainer.world_size
        self.shares.append(len(batch))
        self.rows.append(batch.row_B.tolist())
        self.random.append(float(torch.rand(())))
        if trainer.global_step == self.save_after:
            trainer.save_checkpoint(self.folder / "middle.ckpt")
        if self.in_validation and trainer.is_last_batch and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.folder / "last_step.ckpt")


def run(job: dict) -> None:
    folder = Path(job["folder"])
    watch = Watch(job)
    module = CTRModule(
        partial(Laser, **NETWORK, experts=job.get("experts", 0)),
        TableOptimizer(name=job.get("optimizer", "adagrad"), **job.get("table_options", {})),
        DenseOptimizer(learning_rate=0.01, weight_decay=job.get("weight_decay", 0.0)),
        warm_up_steps=job.get("warm_up", WARM_UP),
        schedule=Schedule(**job.get("schedule", {})),
        average=Average(**job["average"]) if "average" in job else None,
        seed=3,
        warm_start=WarmStart(**job["warm_start"]) if "warm_start" in job else None,
    )
    order = Order(**job.get("order", {}))
    data = CTRDataModule(job["data"], batch_size=job["batch_size"], max_history=MAX_HISTORY, seed=5, order=order)
    trainer = pl.Trainer(
        accelerator=job.get("accelerator", "cpu"),
        devices=WORLD_SIZE // HOSTS,
        num_nodes=HOSTS,
        strategy=TorchRecStrategy(
            Sharding(default=job.get("sharding", "row_wise"), tables=job.get("sharding_tables", {})),
            Storage(
                default=TableStorage(**job.get("storage", {})),
                outputs=job.get("outputs", "float32"),
                stochastic_rounding=job.get("stochastic_rounding", True),
            ),
            managed_ids={name: ManagedIds(**managed) for name, managed in job.get("managed_ids", {}).items()},
            save_in_background=job.get("background", False),
            timeout_seconds=60,
        ),
        precision=job.get("precision", "32-true"),
        max_epochs=job.get("epochs", 2),
        gradient_clip_val=CLIP,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[watch, PredictionWriter(), RunRecord(), RankStatistics()],
    )
    if job.get("stage", "fit") == "fit":
        trainer.fit(module, data, ckpt_path=job.get("checkpoint"))
        trainer.save_checkpoint(folder / "end.ckpt")
    if job.get("stage") == "validate":
        trainer.validate(module, data, ckpt_path=job["checkpoint"], verbose=False)
    if job.get("stage") == "warm start":
        trainer.test(module, data, verbose=False)
        trainer.save_checkpoint(folder / "end.ckpt")
    if job.get("test"):
        # Evaluation starts from a checkpoint, as on the command line.
        trainer.test(module, data, ckpt_path=job.get("checkpoint") or str(folder / "end.ckpt"), verbose=False)
    rank = trainer.global_rank
    names = ("losses", "shares", "rows", "random", "validations")
    (folder / f"losses.{rank}.json").write_text(json.dumps({name: getattr(watch, name) for name in names}))


def by_hand(job: dict) -> None:
    """The same training without Lightning, sharding, fused updates or DDP."""
    data = PreparedData(job["data"])
    torch.manual_seed(3)
    # Tables on "meta" as in the product: created on the CPU they would draw from the generator of the dense weights.
    model = Laser(data.schema, **NETWORK, seed=3, table_device="meta")
    model.embeddings.to_empty(device="cpu")
    model.embeddings.reset_parameters()
    loader = BatchLoader(
        data, "train", batch_size=job["batch_size"], max_history=MAX_HISTORY, shuffle=True, seed=5, workers=0
    )
    tables = {name: p for name, p in model.named_parameters() if ".collections." in name}
    dense = [p for name, p in model.named_parameters() if name not in tables]
    sparse = torch.optim.Adagrad(tables.values(), lr=0.05, eps=1e-8, initial_accumulator_value=0.1)
    adam = torch.optim.Adam(dense, lr=0.01, betas=(0.9, 0.9999), eps=1e-8)
    if decay := job.get("weight_decay"):
        matrices = [p for name, p in model.named_parameters() if name not in tables and p.dim() > 1]
        matrices = [p for p in matrices if not any(p is q for name, q in model.named_parameters() if ".bias" in name)]
        others = [p for p in dense if not any(p is q for q in matrices)]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        adam = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.9999), eps=1e-8)
    averages: dict[str, torch.Tensor] = {}
    losses: dict[int, float] = {}
    step = 0
    for epoch in range(job.get("epochs", 2)):
        loader.set_epoch(epoch)
        for batch in loader:
            factor = min(1.0, (step + 1) / WARM_UP) if "schedule" not in job else hand_made_factor(step)
            for group in (*sparse.param_groups, *adam.param_groups):
                group["lr"] = (0.05 if group in sparse.param_groups else 0.01) * factor
            loss = binary_cross_entropy_with_logits(model(batch).logit_B, batch.label_B)
            sparse.zero_grad()
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(dense, CLIP)
            sparse.step()
            adam.step()
            step += 1
            losses[step] = loss.item()
            if "average" in job and step >= 4 and step % 2 == 0:  # as OPTIONS of test_average.py
                left = min(0.8**2, (step - 4) / 2 / ((step - 4) / 2 + 1))
                for name, p in model.named_parameters():
                    averages[name] = left * averages.get(name, 0.0) + (1 - left) * p.detach()
    folder = Path(job["folder"])
    (folder / "losses.0.json").write_text(json.dumps({"losses": losses, "shares": []}))
    weights = {f"training.network.{name}": value for name, value in model.named_parameters()} if averages else {}
    weights |= {f"model.network.{name}": value for name, value in (model.state_dict() | averages).items()}
    torch.save(weights, folder / "weights.pt")


def hand_made_factor(step: int) -> float:
    """OPTIONS of test_average.py: up in 3 steps, then linearly down to 0.1 at step 8, and flat."""
    return (step + 1) / 3 if step < 3 else max(1 - 0.9 * (step - 3) / 5, 0.1)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        Path(job["folder"]).mkdir(parents=True, exist_ok=True)
        (by_hand if job.get("by_hand") else run)(job)
        (Path(job["folder"]) / "done").touch()


if __name__ == "__main__":
    main()
