"""What a model costs on the machine at hand: arithmetic, parameters, speed, memory, time of a request.

Legend of shape suffixes: B samples; U distinct histories; C candidates of a request.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from laser.batch import Batch
from laser.train.callbacks import device_name, model_facts, run_folder, write_json
from laser.train.module import CTRModule

WARM_UP_STEPS = 10
CANDIDATES = (1, 500)
REPEATS, WARM_UP_REPEATS = 50, 10


class CostMeasurement(Callback):
    """Writes ``costs.json`` at the end of a short training; nothing else should run on the machine.

    ``samples_per_second`` and ``peak_memory_bytes`` are of training steps on real batches after the first ten: on a GPU
    the most that tensors took, on the CPU the most that the process took. A request is the longest history of the last
    batch with 1 or 500 candidates, already on the device; ``latency_ms`` is the time of the network in inference, from
    embedding look-ups to logits, as median and 99th percentile of 50.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self.steps = self.samples = 0
        self.batch: Batch | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count a step; the clock starts when the machine is warm."""
        device = trainer.strategy.root_device
        self.steps += 1
        if self.steps <= WARM_UP_STEPS:
            wait_for(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            self.began = time.perf_counter()
        else:
            self.samples += batch.global_size
        self.batch = batch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure requests and write the file.

        Raises:
            ValueError: when training was too short.
        """
        if not self.samples or self.batch is None:
            raise ValueError(f"costs are measured after {WARM_UP_STEPS} steps, training had {self.steps}")
        assert isinstance(pl_module, CTRModule)
        device = trainer.strategy.root_device
        wait_for(device)
        seconds = time.perf_counter() - self.began
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        length = trainer.datamodule.max_history  # type: ignore[attr-defined]
        content: dict[str, Any] = {
            "device": device_name(device),
            "precision": str(trainer.precision),
            "torch": torch.__version__,
            "batch_size": self.batch.global_size,
            "samples_per_second": round(self.samples / seconds, 1),
            "peak_memory_bytes": memory or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            **model_facts(pl_module, length),
        }
        requests = {candidates: make_request(self.batch, candidates).to(device) for candidates in CANDIDATES}
        content["request_events"] = int(requests[1].age_T.shape[0])
        content["latency_ms"] = {str(n): time_request(trainer, pl_module, request) for n, request in requests.items()}
        if trainer.is_global_zero:
            write_json(run_folder(trainer) / "costs.json", content)


def make_request(batch: Batch, candidates: int) -> Batch:
    """The batch's longest history with the targets of its first samples, over and over, as candidates; on the host."""
    batch = batch.map(Tensor.cpu).by_event()
    length_U = batch.off_U1.diff()
    history = int(length_U.argmax())
    start, stop = int(batch.off_U1[history]), int(batch.off_U1[history + 1])
    sample_C = torch.arange(candidates) % len(batch)
    rows = _taker(sample_C)
    return Batch(
        history={name: values[start:stop] for name, values in batch.history.items()},
        off_U1=torch.tensor([0, stop - start]),
        age_T=batch.age_T[start:stop],
        history_of_B=torch.zeros(candidates, dtype=torch.int64),
        target={name: rows(values) for name, values in batch.target.items()},
        context={name: rows(values) for name, values in batch.context.items()},
        label_B=rows(batch.label_B),
        user_B=rows(batch.user_B),
        timestamp_B=rows(batch.timestamp_B),
        row_B=rows(batch.row_B),
        history_key_U=batch.history_key_U[history : history + 1],
        step=batch.step,
        global_size=candidates,
    )


def _taker(sample_C: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda values: values[sample_C]


def time_request(trainer: Trainer, module: CTRModule, request: Batch) -> dict[str, float]:
    """Milliseconds of the network for one request: median and 99th percentile."""
    device, times = trainer.strategy.root_device, []
    training = module.network.training
    module.network.eval()
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        for repeat in range(WARM_UP_REPEATS + REPEATS):
            wait_for(device)
            began = time.perf_counter()
            module.network(request)
            wait_for(device)
            if repeat >= WARM_UP_REPEATS:
                times.append(1000 * (time.perf_counter() - began))
    module.network.train(training)
    return {"median": round(statistics.median(times), 3), "p99": round(sorted(times)[int(0.99 * len(times))], 3)}


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
