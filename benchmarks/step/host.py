"""What the host does in the trainer's steps beside the network: medians of the parts of a real run.

    python benchmarks/step/host.py -c conf/demo.yaml [any option of laser fit]

Runs `laser fit` with small batches for 300 steps, and counts from the 50th. Where a GPU computes, this is what it waits
for when a step is short; parts of parts are not taken off.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer import call

from laser.cli import main
from laser.model.sequence_model import SequenceModel
from laser.train.module import CTRModule
from laser.train.optim import SparseDenseOptimizer

STEPS, SKIPPED = 300, 50
OPTIONS = {
    "trainer.max_steps": STEPS,
    "trainer.limit_val_batches": 0,
    "trainer.enable_progress_bar": False,
    "trainer.default_root_dir": "runs/host",
    "data.batch_size": 16,
}
PARTS: dict[str, tuple[Any, str]] = {
    "all of a step": (_TrainingEpochLoop, "advance"),
    "forward, backward, update": (_AutomaticOptimization, "run"),
    "network": (SequenceModel, "__call__"),
    "backward": (torch.Tensor, "backward"),
    "training_step": (CTRModule, "training_step"),
    "log": (CTRModule, "log"),
    "clipping": (CTRModule, "configure_gradient_clipping"),
    "zero_grad": (SparseDenseOptimizer, "zero_grad"),
    "callbacks": (call, "_call_callback_hooks"),
}


def measure() -> None:
    times: dict[str, list[tuple[int, float]]] = defaultdict(list)
    steps = 0

    def timed(name: str, function: Callable) -> Callable:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += name == "all of a step"
            step, began = steps, time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                times[name].append((step, time.perf_counter() - began))

        return run

    for name, (owner, method) in PARTS.items():
        setattr(owner, method, timed(name, getattr(owner, method)))
    extra = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value).lower())]
    try:
        sys.argv = ["laser", "fit", *sys.argv[1:], *extra]
        main()
    finally:
        for name in PARTS:
            a_step: dict[int, float] = defaultdict(float)
            for step, seconds in times[name]:
                if step > SKIPPED:
                    a_step[step] += 1e3 * seconds
            each = [a_step[step] for step in range(SKIPPED + 1, steps + 1)]
            print(f"{name:28} median {statistics.median(each):7.3f}  mean {statistics.fmean(each):7.3f}  ms a step")


if __name__ == "__main__":
    measure()
