"""A trace of some training steps with named regions, and a page that sums it up."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from laser.train.callbacks import run_folder

REGION = "laser::"
COLLECTIVE = re.compile(r"^(gloo|nccl|c10d)[:_]|ncclDevKernel|^record_param_comms", re.I)
WARM_UP_STEPS = 5
TOP = 15


class StepProfile(Callback):
    """Writes ``profile/trace.RANK.json`` (for chrome://tracing or Perfetto) and ``profile/summary.RANK.txt``.

    Regions: ``between_steps`` (waiting for data, logging, checkpoints), one for each part of the network in the forward
    pass, ``backward`` (in which tables are updated) and ``dense_optimizer``.

    Args:
        steps: steps to record, after the first five.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seen = 0
        self.profiler: profile | None = None
        self.open: dict[str, ExitStack] = {}
        self.hooks: list[Any] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin when warm; data has arrived."""
        self._leave("between_steps")
        self.seen += 1
        if self.seen == WARM_UP_STEPS + 1:
            network = pl_module.network
            assert isinstance(network, nn.Module)
            self._mark(network)
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self.profiler = profile(activities=[ProfilerActivity.CPU, *cuda])
            self.profiler.start()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """The backward pass begins."""
        self._enter("backward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The backward pass has ended."""
        self._leave("backward")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Gradients are there."""
        self._enter("dense_optimizer")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step has ended; after the last of them the files are written."""
        self._leave("dense_optimizer")
        if self.seen == WARM_UP_STEPS + self.steps:
            self._finish(trainer)
        self._enter("between_steps")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is not training."""
        self._leave("between_steps")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was shorter is written as far as it went."""
        self._finish(trainer)
        if self.seen <= WARM_UP_STEPS and trainer.is_global_zero:
            print(f"laser fit: no profile, as it begins after {WARM_UP_STEPS} steps and the run has {self.seen}")

    def _enter(self, name: str) -> None:
        if self.profiler is not None:
            stack = self.open.setdefault(name, ExitStack())
            stack.enter_context(record_function(REGION + name))

    def _leave(self, name: str) -> None:
        if name in self.open:
            self.open.pop(name).close()

    def _mark(self, network: nn.Module) -> None:
        for name, part in network.named_children():
            self.hooks += [
                part.register_forward_pre_hook(lambda *_, name=name: self._enter(name)),
                part.register_forward_hook(lambda *_, name=name: self._leave(name)),
            ]

    def _finish(self, trainer: Trainer) -> None:
        if self.profiler is None:
            return
        for name in list(self.open):
            self._leave(name)
        for hook in self.hooks:
            hook.remove()
        profiler, self.profiler = self.profiler, None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        profiler.stop()
        folder = run_folder(trainer) / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / f"trace.{trainer.global_rank}.json"))
        path = folder / f"summary.{trainer.global_rank}.txt"
        path.write_text(summary(profiler, min(self.seen - WARM_UP_STEPS, self.steps)))
        if trainer.is_global_zero:
            print(f"laser fit: profile of {self.steps} steps in {folder}")


def summary(profiler: profile, steps: int) -> str:
    """One page: milliseconds per step of each region, of collective operations, and the most expensive operators."""
    averages = profiler.key_averages()
    regions = [event for event in averages if event.key.startswith(REGION)]
    collectives = [event for event in averages if COLLECTIVE.search(event.key)]
    lines = [f"{steps} training steps, milliseconds per step", "", f"{'host':>10} {'device':>10}  region"]
    lines += [_line(event, steps) for event in sorted(regions, key=lambda event: -event.cpu_time_total)]
    lines += ["", f"{'host':>10} {'device':>10}  collective operation (as long as it waits for the others)"]
    lines += [_line(event, steps) for event in sorted(collectives, key=lambda event: -event.cpu_time_total)]
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return "\n".join([*lines, "", averages.table(sort_by=order, row_limit=TOP, max_name_column_width=60), ""])


def _line(event: Any, steps: int) -> str:
    host, device = (time / 1000 / steps for time in (event.cpu_time_total, event.device_time_total))
    return f"{host:10.3f} {device:10.3f}  {event.key.removeprefix(REGION)}"
