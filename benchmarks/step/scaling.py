"""A training step on 1, 2, ... processes: sharded tables, and the same model on plain nn.Embedding with DDP.

    python benchmarks/step/scaling.py --out results --processes 1 2 --device cpu
    python benchmarks/step/scaling.py --out results --device cuda --batch 1024 --events 400 --rows 1000000

Batches are drawn at random and stay on the device: no loader is timed. Every process has ``--batch`` samples (weak
scaling), so that efficiency is the time of a step of one process over that of N. Ids follow a power law.

- ``tables``: LASER's own step: TorchRec's sharded collections, updates fused into the backward pass;
- ``plain``: every process holds whole nn.Embedding tables, DDP averages their dense gradients, Adagrad steps them.

Parts are medians over steps, the device waited for after each; ``step`` is the three without waiting in between.
``exchange`` is the time in collective operations according to torch.profiler, waiting for the others included.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from laser.batch import Batch
from laser.data.distinct import distinct_ids
from laser.model.embeddings import initial_rows
from laser.model.laser import Laser
from laser.schema import Feature, Kind, Schema
from laser.train.callbacks import device_name
from laser.train.module import local_loss
from laser.train.optim import DenseOptimizer, TableOptimizer, build_optimizer, dense_parameters, fill_accumulators
from laser.train.placement import Sharding
from laser.train.profiling import COLLECTIVE
from laser.train.sharding import shard_collections, sharded_collections

WARM_UP, PROFILED = 5, 3
SEED = 0
COLLECTIVE_OF_THE_HOST = ("gloo:", "nccl:")


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


def make_batch(schema: Schema, samples: int, events: int, world_size: int, generator: torch.Generator) -> Batch:
    """``samples`` samples with histories of 0 to 2 ``events`` events."""

    def ids(feature: Feature, count: int) -> Tensor:
        assert feature.cardinality is not None
        skewed = torch.rand(count, generator=generator, dtype=torch.float64)
        return (feature.cardinality**skewed).long().clamp(max=feature.cardinality - 1)

    lengths = torch.randint(0, 2 * events + 1, (samples,), generator=generator)
    total = int(lengths.sum())
    order = torch.arange(samples)
    history = {feature.name: ids(feature, total) for feature in schema.history}
    target = {feature.name: ids(feature, samples) for feature in schema.target}
    context = {feature.name: ids(feature, samples) for feature in schema.context}
    fields = [{name: values.numpy() for name, values in group.items()} for group in (history, target, context)]
    distinct, place = distinct_ids(schema, *fields)  # as the loader's threads do
    return Batch(
        history=history,
        off_U1=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        age_T=torch.rand(total, generator=generator) * 1e6 + 1,
        history_of_B=order,
        target=target,
        context=context,
        label_B=torch.randint(0, 2, (samples,), generator=generator).float(),
        user_B=order,
        timestamp_B=order,
        row_B=order,
        history_key_U=order,
        step=0,
        global_size=samples * world_size,
        distinct={name: torch.from_numpy(values) for name, values in distinct.items()},
        place={name: torch.from_numpy(values) for name, values in place.items()},
    )


class Step:
    """Forward, backward and update of one variant."""

    def __init__(self, options: argparse.Namespace, schema: Schema, device: torch.device) -> None:
        self.device = device
        self.world_size = dist.get_world_size()
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed")
        torch.manual_seed(SEED)
        network = Laser(schema, seed=SEED, table_device="meta" if options.variant == "tables" else None)
        table, dense = TableOptimizer(), DenseOptimizer()
        ids = [device.index] if device.type == "cuda" else None
        if options.variant == "tables":
            shard_collections(network, Sharding(), table, device)
            for _, collection in sharded_collections(network):
                fill_accumulators(collection.fused_optimizer, table)
                for key, weight in collection.state_dict().items():
                    for shard in weight.local_shards():
                        first, (rows, width) = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes
                        name = key.split(".")[1]
                        shard.tensor.copy_(initial_rows(name, first, first + rows, width, SEED, 0.02))
            network.to(device)
            shards = [f"{n}.{key}" for n, c in sharded_collections(network) for key, _ in c.named_parameters()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, shards)
            fused = [collection.fused_optimizer for _, collection in sharded_collections(network)]
            optimizer = build_optimizer(dense_parameters(network), fused, table, dense)
            self.push, self.optimizers = optimizer.push_table_learning_rate, [optimizer.dense]
        else:
            network.to(device)
            tables = [p for name, p in network.named_parameters() if ".collections." in name]
            others = {name: p for name, p in network.named_parameters() if ".collections." not in name}
            self.push = lambda: None
            self.optimizers: list[Any] = [
                torch.optim.Adagrad(tables, lr=table.learning_rate, initial_accumulator_value=0.1, eps=table.eps),
                dense.build(others),
            ]
        self.network: nn.Module = DistributedDataParallel(network, device_ids=ids)

    def forward(self, batch: Batch) -> None:
        with self.autocast():
            output = self.network(batch)
        self.loss = local_loss(output.logit_B, batch, self.world_size, output.auxiliary_loss)

    def backward(self, _batch: Batch) -> None:
        self.loss.backward()

    def update(self, _batch: Batch) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.push()

    def step(self, batch: Batch) -> None:
        self.forward(batch)
        self.backward(batch)
        self.update(batch)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[Batch], None], batch: Batch, device: torch.device) -> float:
    began = time.perf_counter()
    work(batch)
    wait(device)
    return 1e3 * (time.perf_counter() - began)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One rank's figures, milliseconds."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank) if options.device == "cuda" else torch.device("cpu")
    schema = make_schema(options.rows, options.width)
    generator = torch.Generator().manual_seed(1000 + rank)
    batches = [make_batch(schema, options.batch, options.events, world_size, generator).to(device) for _ in range(4)]
    work = Step(options, schema, device)
    for n in range(WARM_UP):
        work.step(batches[n % 4])
    parts: dict[str, list[float]] = {"forward": [], "backward": [], "update": [], "step": []}
    for n in range(options.steps):
        for name, part in (("forward", work.forward), ("backward", work.backward), ("update", work.update)):
            dist.barrier()
            wait(device)
            parts[name].append(timed(part, batches[n % 4], device))
    dist.barrier()
    for n in range(options.steps):
        parts["step"].append(timed(work.step, batches[n % 4], device))
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as record:
        for n in range(PROFILED):
            work.step(batches[n % 4])
        wait(device)
    averages = [event for event in record.key_averages() if COLLECTIVE.search(event.key)]
    if device.type == "cuda":
        exchange = sum(e.self_device_time_total for e in averages if "ncclDevKernel" in e.key)
    else:
        exchange = sum(e.cpu_time_total for e in averages if e.key.startswith(COLLECTIVE_OF_THE_HOST))
    found: dict[str, Any] = {name: round(statistics.median(times), 3) for name, times in parts.items()}
    low, _, high = statistics.quantiles(parts["step"], n=4)
    found |= {"spread": round((high - low) / 2, 3), "exchange": round(exchange / 1e3 / PROFILED, 3)}
    if device.type == "cuda":
        found["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return found | {"hardware": device_name(device), "loss": round(work.loss.item(), 6)}


def worker(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ["RANK"]))
    dist.init_process_group("nccl" if options.device == "cuda" else "gloo", init_method="env://")
    mine = measure(options)
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    if dist.get_rank() == 0:
        print(json.dumps(ranks))
    dist.destroy_process_group()


def run(options: argparse.Namespace, variant: str, processes: int) -> list[dict[str, Any]]:
    """Start the processes of one variant; their figures by rank."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    common |= {"LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, __file__, "--worker", "--variant", variant]
    for name in ("device", "batch", "events", "rows", "width", "steps", "precision", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    started = [
        subprocess.Popen(
            command,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    outcomes = [process.communicate(timeout=options.limit) for process in started]
    for process, (_, errors) in zip(started, outcomes, strict=True):
        if process.returncode:
            raise RuntimeError(errors[-2000:])
    return json.loads(outcomes[0][0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--variants", nargs="+", default=["tables", "plain"], choices=["tables", "plain"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=64, help="samples of each process")
    parser.add_argument("--events", type=int, default=100, help="mean events of a history")
    parser.add_argument("--rows", type=int, default=100_000, help="of the item table")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that one variant may take")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--variant", default="tables", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options)
    found: dict[str, Any] = {"arguments": sys.argv[1:], "torch": torch.__version__}
    names = ("forward", "backward", "update", "step", "spread", "exchange")
    print(
        f"{'variant':8} {'processes':>9}" + "".join(f"{name:>10}" for name in names) + f"{'samples/s':>12}{'eff.':>7}"
    )
    for variant in options.variants:
        alone = None
        for processes in options.processes:
            ranks = run(options, variant, processes)
            slowest = {name: max(rank[name] for rank in ranks) for name in names}
            alone = alone or slowest["step"]
            rate = 1e3 * options.batch * processes / slowest["step"]
            efficiency = alone / slowest["step"]
            found[f"{variant} {processes}"] = {"ranks": ranks, "samples_per_second": rate, "efficiency": efficiency}
            cells = "".join(f"{slowest[name]:10.2f}" for name in names)
            print(f"{variant:8} {processes:9}{cells}{rate:12.0f}{efficiency:7.2f}", flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
