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
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from workload import Step, make_batch, make_schema, wait

from laser.batch import Batch
from laser.train.callbacks import device_name
from laser.train.profiling import COLLECTIVE

WARM_UP, PROFILED = 5, 3
COLLECTIVE_OF_THE_HOST = ("gloo:", "nccl:")


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
    lengths = [torch.randint(0, 2 * options.events + 1, (options.batch,), generator=generator) for _ in range(4)]
    batches = [make_batch(schema, each, generator, world_size=world_size).to(device) for each in lengths]
    work = Step(schema, device, sharded=options.variant == "tables", half=options.precision == "bf16-mixed")
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
