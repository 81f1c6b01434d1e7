"""Random batches that stay on the device, LASER's own training step on them, and how long a step takes.

Legend of shape suffixes: B samples; U distinct histories.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from laser.batch import Batch
from laser.data.distinct import distinct_ids
from laser.model.embeddings import initial_rows
from laser.model.laser import Laser
from laser.model.recording import RecordedNetwork
from laser.schema import Feature, Kind, Schema
from laser.train.fused_state import fill_accumulators
from laser.train.gradients import average_gradients
from laser.train.loss import local_loss
from laser.train.optim import DenseOptimizer, TableOptimizer, build_optimizer, dense_parameters
from laser.train.placement import Sharding
from laser.train.sharding import shard_collections, sharded_collections

SEED = 0


def make_schema(rows: int, width: int) -> Schema:
    """An item, its category, an action of each event, a context field."""
    sized = {"width": width}
    return Schema(
        "random",
        (
            Feature(name="user", kind=Kind.USER, dtype="uint32", cardinality=1000),
            Feature(name="item", kind=Kind.ITEM, dtype="uint32", cardinality=rows, table="item", **sized),
            Feature(name="category", kind=Kind.ITEM_SIDE, dtype="uint32", cardinality=1000, table="category", **sized),
            Feature(name="action", kind=Kind.EVENT_SIDE, dtype="uint8", cardinality=8, table="action", **sized),
            Feature(name="device", kind=Kind.CONTEXT, dtype="uint8", cardinality=16, table="device", **sized),
            Feature(name="click", kind=Kind.LABEL, dtype="uint8"),
            Feature(name="timestamp", kind=Kind.TIMESTAMP, dtype="int64"),
        ),
    )


def make_batch(
    schema: Schema, lengths_U: Tensor, generator: torch.Generator, *, candidates: int = 1, world_size: int = 1
) -> Batch:
    """Histories of the given lengths with ``candidates`` samples each; ids follow a power law."""

    def ids(feature: Feature, count: int) -> Tensor:
        assert feature.cardinality is not None
        skewed = torch.rand(count, generator=generator, dtype=torch.float64)
        return (feature.cardinality**skewed).long().clamp(max=feature.cardinality - 1)

    total, samples = int(lengths_U.sum()), len(lengths_U) * candidates
    order_U = torch.arange(len(lengths_U))
    item_I, item_of_T = ids(schema.item, total).unique(return_inverse=True)
    side = {feature.name: ids(feature, len(item_I)) for feature in schema.of_kind(Kind.ITEM_SIDE)}
    items = {schema.item.name: item_I} | side
    history = {feature.name: ids(feature, total) for feature in schema.of_kind(Kind.EVENT_SIDE)}
    target = {feature.name: ids(feature, samples) for feature in schema.target}
    context = {feature.name: ids(feature, samples) for feature in schema.context}
    fields = [{name: values.numpy() for name, values in group.items()} for group in (items | history, target, context)]
    distinct, place = distinct_ids(schema, *fields)  # as the loader's threads do
    return Batch(
        items=items,
        item_of_T=item_of_T.int(),
        history=history,
        off_U1=torch.cat([torch.zeros(1, dtype=torch.int64), lengths_U.cumsum(0)]),
        age_T=torch.rand(total, generator=generator) * 1e6 + 1,
        history_of_B=order_U.repeat_interleave(candidates),
        target=target,
        context=context,
        label_B=torch.randint(0, 2, (samples,), generator=generator).float(),
        user_B=order_U.repeat_interleave(candidates),
        timestamp_B=torch.arange(samples),
        row_B=torch.arange(samples),
        history_key_U=order_U,
        step=0,
        global_size=samples * world_size,
        distinct={name: torch.from_numpy(values) for name, values in distinct.items()},
        place={name: torch.from_numpy(values) for name, values in place.items()},
    )


class Step:
    """Forward, backward and update of LASER; the default process group must be there.

    Args:
        schema: of the batches.
        device: of this process.
        sharded: LASER's own step: TorchRec's sharded collections, updates fused into the backward pass, on a GPU
            recorded. Otherwise every process holds whole nn.Embedding tables, DDP averages their dense gradients,
            Adagrad steps them.
        half: bfloat16 autocast.
        table: optimizer of the tables.
        options: of the network.
        recorded: whether the sharded step is recorded.
    """

    def __init__(
        self,
        schema: Schema,
        device: torch.device,
        *,
        sharded: bool = True,
        half: bool = False,
        table: TableOptimizer | None = None,
        options: dict[str, Any] | None = None,
        recorded: bool = True,
    ) -> None:
        self.device = device
        self.world_size = dist.get_world_size()
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=half)
        torch.manual_seed(SEED)
        network = Laser(schema, seed=SEED, table_device="meta" if sharded else None, **(options or {}))
        table, dense = table or TableOptimizer(), DenseOptimizer()
        self.push: Callable[[], None] = lambda: None
        self.optimizers: list[Any]
        self.network: Callable[[Batch], Any]
        self.reduced: list[nn.Parameter] = []
        if sharded:
            shard_and_fill(network, table, device)
            fused = [collection.fused_optimizer for _, collection in sharded_collections(network)]
            optimizer = build_optimizer(dense_parameters(network), fused, table, dense, gradients=self.flat_gradients)
            self.push, self.optimizers = optimizer.push_table_learning_rate, [optimizer.dense]
            self.reduced = list(dense_parameters(network).values())
            recorded = recorded and device.type == "cuda" and network.recordable
            self.network = RecordedNetwork(network, self.reduced) if recorded else network
        else:
            network.to(device)
            tables = [p for name, p in network.named_parameters() if ".collections." in name]
            others = {name: p for name, p in network.named_parameters() if ".collections." not in name}
            adagrad = torch.optim.Adagrad(tables, lr=table.learning_rate, initial_accumulator_value=0.1, eps=table.eps)
            self.optimizers = [adagrad, dense.build(others)]
            self.network = DistributedDataParallel(
                network, device_ids=[device.index] if device.type == "cuda" else None
            )

    def forward(self, batch: Batch) -> None:
        with self.autocast():
            output = self.network(batch)
        self.loss = local_loss(output.logit_B, batch, self.world_size, output.auxiliary_loss)

    def backward(self, _batch: Batch) -> None:
        self.loss.backward()
        if self.reduced:
            average_gradients(self.reduced, self.flat_gradients())

    def flat_gradients(self) -> torch.Tensor | None:
        return self.network.flat_gradients() if isinstance(self.network, RecordedNetwork) else None

    def update(self, _batch: Batch) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.push()

    def step(self, batch: Batch) -> None:
        self.forward(batch)
        self.backward(batch)
        self.update(batch)


def shard_and_fill(network: Laser, table: TableOptimizer, device: torch.device) -> None:
    """Tables as the training strategy makes them, with initial rows."""
    shard_collections(network, Sharding(), table, device)
    for _, collection in sharded_collections(network):
        fill_accumulators(collection.fused_optimizer, table)
        for key, weight in collection.state_dict().items():
            for shard in weight.local_shards():
                first, (rows, width) = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes
                name = key.split(".")[1]
                shard.tensor.copy_(initial_rows(name, first, first + rows, width, SEED, 0.02))
    network.to(device)


def device_named(name: str, parser: argparse.ArgumentParser) -> torch.device:
    """The first GPU or the CPU."""
    if name == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but PyTorch finds no GPU here; leave it out to run on the CPU")
    return torch.device("cuda", 0) if name == "cuda" else torch.device("cpu")


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """A process group of this process alone."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """Most bytes in use since it was made: of the GPU's tensors, or of the process where there is no GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten
        self.before = self._field("VmRSS")

    def bytes(self) -> int:
        """On a GPU with model and batches; on a CPU beyond what was there before."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._field("VmHWM") - self.before

    @staticmethod
    def _field(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def back_to_back(
    step: Callable[[Any], object], batches: Sequence[Any], device: torch.device, *, steps: int, warm_up: int = 5
) -> dict[str, Any]:
    """Milliseconds of a step where only the last of several in a row is waited for, median of five; peak memory."""
    memory, times = PeakMemory(device), []
    for n in range(warm_up):
        step(batches[n % len(batches)])
    wait(device)
    for _ in range(5):
        began = time.perf_counter()
        for n in range(steps):
            step(batches[n % len(batches)])
        wait(device)
        times.append(1e3 * (time.perf_counter() - began) / steps)
    low, middle, high = statistics.quantiles(times, n=4)
    return {"ms": middle, "spread": (high - low) / 2, "peak_GB": memory.bytes() / 1e9}
