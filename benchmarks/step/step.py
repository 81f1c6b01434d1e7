"""Where a training step's time goes: the loader alone, the step on one batch, both together, and what waits.

    python benchmarks/step/step.py -c conf/demo.yaml --out results [--trainer.max_steps 200] [any option of laser fit]

Runs `laser fit` without validation, loggers and checkpoints, then, with the model still set up:

- ``loader``: batches drawn and dropped;
- ``fit``: steps of the trainer, from the end of one to the end of the next;
- ``slow``: steps of ``fit`` longer than twice the median, as [step, ms, place in its epoch]; before place 0 another
  epoch ended. Where the device is behind, the host may wait for it some steps later;
- ``forward``, ``backward``, ``optimizer``: on one batch that stays on the device, the device waited for after each;
- ``step``: the three without waiting in between;
- ``queued``: steps one after the other, the device waited for after the last: how fast training is when no loader
  holds it up, since the host prepares a step while the device computes the one before;
- on a GPU: launches and busy time of a step, each place where the host waited for the device, and ``kernels.txt``, all
  kernels of one step in their order, by which one sees what belongs together; ``trace.json`` is for a trace viewer.

Times are medians over steps with half of the range between the quartiles, in milliseconds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile

from laser.train.callbacks import device_name
from laser.train.command_line import run_training
from laser.train.loss import local_loss

WARM_UP = 30
REPEATS = 50


def spread(times: list[float]) -> dict[str, float]:
    """Median and half of the range between the quartiles, from seconds to milliseconds."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"ms": round(1e3 * middle, 3), "spread": round(1e3 * (high - low) / 2, 3)}


def slow(times: list[float], places: list[int]) -> list[tuple[int, float, int]]:
    """Number (from ``WARM_UP`` + 1), milliseconds and place in its epoch of each step of more than twice the median."""
    limit = 2 * statistics.median(times)
    steps = enumerate(zip(times, places, strict=True), WARM_UP + 1)
    return [(step, round(1e3 * seconds, 3), place) for step, (seconds, place) in steps if seconds > limit]


class StepTimes(pl.Callback):
    """Measures while training, and more when it has ended.

    Args:
        out: folder for ``step.json`` and, on a GPU, ``profile.txt``.
    """

    def __init__(self, out: str) -> None:
        self.out = Path(out)
        self.ends: list[float] = []
        self.waits: list[float] = []
        self.places: list[int] = []
        self.sizes: list[int] = []
        self.found: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.ends:
            self.waits.append(time.perf_counter() - self.ends[-1])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if len(self.ends) == WARM_UP:
            wait_for(trainer.strategy.root_device)
        self.ends.append(time.perf_counter())
        self.places.append(batch_idx)
        self.sizes.append(batch.global_size)
        if batch.global_size == max(self.sizes):  # the last batch of an epoch is short
            self.batch = batch

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        device = trainer.strategy.root_device
        wait_for(device)
        self.ends[-1] = time.perf_counter()
        after = self.ends[WARM_UP:]
        if len(after) < 3:
            raise ValueError(
                f"training ended after {len(self.ends)} steps; give --trainer.max_steps above {WARM_UP + 3}"
            )
        seconds = after[-1] - after[0]
        mean, samples = seconds / (len(after) - 1), sum(self.sizes[WARM_UP + 1 :])
        size, events = self.batch.global_size, int(self.batch.off_U1[-1])
        steps = [later - earlier for earlier, later in pairwise(after)]
        self.found = {
            "hardware": device_name(device),
            "torch": torch.__version__,
            "processes": trainer.world_size,
            "samples_of_a_step": size,
            "events_of_the_last_full_step": events,
            "fit": spread(steps) | {"mean_ms": round(1e3 * mean, 3), "samples_per_second": round(samples / seconds)},
            "slow": slow(steps, self.places[WARM_UP + 1 :]),
            "wait_for_the_loader": spread(self.waits[WARM_UP:]),
            "loader": self.loader(trainer),
        }
        work = Work(pl_module, self.batch)
        self.found |= {name: measured(part, device) for name, part in work.parts().items()}
        self.found["queued"] = queued(work.step, device)
        if device.type == "cuda":
            self.found |= on_gpu(work.step, self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "step.json").write_text(json.dumps(self.found, indent=1) + "\n")
        print(json.dumps(self.found, indent=1))

    def loader(self, trainer: Any) -> dict[str, float]:
        """Batches alone, with as many threads as the recipe gives."""
        times, last = [], time.perf_counter()
        for _ in islice(trainer.datamodule.train_dataloader(), 2 * REPEATS):
            times.append(time.perf_counter() - last)
            last = time.perf_counter()
        mean = sum(times[5:]) / len(times[5:])
        return spread(times[5:]) | {"mean_ms": round(1e3 * mean, 3)}


class Work:
    """The parts of a step on one batch, in the precision of the run."""

    def __init__(self, module: Any, batch: Any) -> None:
        self.module, self.batch = module, batch
        self.optimizer = module.trainer.optimizers[0]
        self.loss: torch.Tensor | None = None

    def forward(self) -> None:
        module = self.module
        with module.trainer.precision_plugin.forward_context():
            output = (module.recorded or module.network)(self.batch)
        self.loss = local_loss(output.logit_B, self.batch, module.trainer.world_size, output.auxiliary_loss)

    def backward(self) -> None:
        assert self.loss is not None
        self.loss.backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self) -> None:
        self.forward()
        self.backward()
        self.update()

    def parts(self) -> dict[str, list[Callable[[], None]]]:
        """Name -> what runs untimed before it, and it."""
        return {
            "forward": [lambda: None, self.forward],
            "backward": [self.forward, self.backward],
            "optimizer": [lambda: (self.forward(), self.backward()), self.update],
            "step": [lambda: None, self.step],
        }


def measured(part: list[Callable[[], None]], device: torch.device) -> dict[str, float]:
    """Repeat ``before`` untimed and ``work`` timed."""
    before, work = part
    times = []
    for _ in range(REPEATS):
        before()
        wait_for(device)
        began = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - began)
    return spread(times[5:])


def queued(step: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Mean of steps that are not waited for."""
    wait_for(device)
    began = time.perf_counter()
    for _ in range(REPEATS):
        step()
    wait_for(device)
    return {"mean_ms": round(1e3 * (time.perf_counter() - began) / REPEATS, 3)}


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_gpu(step: Callable[[], None], out: Path) -> dict[str, Any]:
    """Launches, busy time, and the places that wait."""
    out.mkdir(parents=True, exist_ok=True)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    repeats = 10
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        for _ in range(repeats):
            step()
        torch.cuda.synchronize()
    record.export_chrome_trace(str(out / "trace.json"))
    (out / "kernels.txt").write_text(in_order(json.loads((out / "trace.json").read_text()), repeats))
    averages = record.key_averages()
    by_device = averages.table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=90)
    by_host = averages.table(sort_by="self_cpu_time_total", row_limit=45, max_name_column_width=90)
    (out / "profile.txt").write_text(f"{by_device}\n{by_host}\n")
    kernels = [
        row for row in averages if row.device_type == torch.autograd.DeviceType.CUDA and not row.is_user_annotation
    ]
    busy = sum(row.self_device_time_total for row in kernels) / repeats / 1e3
    launches = sum(row.count for row in averages if "LaunchKernel" in row.key) / repeats
    count = sum(row.count for row in kernels) / repeats
    return {"device_busy_ms": round(busy, 3), "kernels": count, "launches": launches, "waits": waits(step)}


def in_order(trace: dict[str, Any], repeats: int) -> str:
    """Number, microseconds, name and grid (or bytes) of every kernel, copy and fill of one of some equal steps."""
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    events = sorted((e for e in trace["traceEvents"] if e.get("cat") in kinds), key=lambda event: event["ts"])
    count, middle = len(events) // repeats, repeats // 2
    lines = []
    for place, event in enumerate(events[middle * count : (middle + 1) * count]):
        size = event["args"].get("grid", event["args"].get("bytes"))
        lines.append(f"{place} {event['dur']:.1f} {event['name'][:150]} {size}")
    return "\n".join(lines) + "\n"


def waits(step: Callable[[], None]) -> dict[str, int]:
    """Lines of code at which the host waits for the device during a step -> how often."""
    places: Counter[str] = Counter()

    def note(*_arguments: Any, **_options: Any) -> None:
        frames = [f for f in traceback.extract_stack()[:-1] if "/warnings.py" not in f.filename]
        ours = [f"{'/'.join(Path(f.filename).parts[-3:])}:{f.lineno}" for f in frames]
        places[" < ".join(reversed(ours[-4:]))] += 1

    shown = warnings.showwarning
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            step()
    finally:
        warnings.showwarning = shown
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    return dict(places.most_common())


def main() -> None:
    arguments = sys.argv[1:]
    at = arguments.index("--out")
    out = arguments[at + 1]
    sys.path.insert(0, str(Path(__file__).parent))
    callback = json.dumps([{"class_path": "step.StepTimes", "init_args": {"out": out}}])
    run_training(
        [
            "fit",
            *arguments[:at],
            "--trainer.max_steps=300",
            *arguments[at + 2 :],
            f"--trainer.callbacks={callback}",
            "--trainer.logger=false",
            "--trainer.enable_checkpointing=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.limit_val_batches=0",
            f"--trainer.default_root_dir={out}",
        ]
    )


if __name__ == "__main__":
    main()
