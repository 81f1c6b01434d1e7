"""Look-ups in tables that several processes share: our exchange of ids and rows against TorchRec's, taking turns.

    python benchmarks/step/exchange.py [--processes 2] [--device cuda] [--ids 100 10000 100000]

A step looks up four tables of a million rows by row_wise, and sends gradients back for the fused update. ``host`` is
the time until all of it is started, ``step`` until it is done; on a CPU they are the same. Before each step a GPU is
given about ``--busy`` milliseconds of other work, as by the step before it in training, for which the host may wait.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from laser.model.embeddings import SortedIds, offsets_of_bags
from laser.train.optim import TableOptimizer
from laser.train.placement import Sharding
from laser.train.sharding import shard_collections, sharded_collections
from laser.train.table_collection import TableCollection

TABLES, ROWS, STRIDE = ("a", "b", "c", "d"), 1_000_000, 1024
WAYS = {"ours": TableCollection.forward, "TorchRec's": ShardedEmbeddingCollection.forward}


def collection_of(width: int, device: torch.device) -> ShardedEmbeddingCollection:
    configs = [
        EmbeddingConfig(name=name, embedding_dim=width, num_embeddings=ROWS, feature_names=[name]) for name in TABLES
    ]
    model = torch.nn.ModuleDict({"x": EmbeddingCollection(tables=configs, device=torch.device("meta"))})
    shard_collections(model, Sharding(), TableOptimizer(), device)
    ((_, collection),) = sharded_collections(model)
    return collection


def ids(count: int, rank: int, device: torch.device) -> SortedIds:
    """As the loader leaves them: ``count`` distinct ids for all tables together, on the device and on the host."""
    generator = np.random.default_rng(rank)
    each = count // len(TABLES)
    host = {name: torch.from_numpy(np.sort(generator.choice(ROWS, each, replace=False))) for name in TABLES}
    counts = [each] * len(TABLES)
    values = torch.cat(list(host.values())).to(device)
    offsets = offsets_of_bags(counts, STRIDE, device)
    return SortedIds(host, list(TABLES), values, offsets=offsets, stride=STRIDE, length_per_key=counts)


class Device:
    """Waiting for a device, and other work for it.

    Args:
        device: of this process.
        busy: milliseconds of work.
    """

    def __init__(self, device: torch.device, busy: float) -> None:
        self.gpu = device.type == "cuda"
        self.cycles = int(busy * 1.9e6)  # a GPU's clock has some 1.9 GHz

    def work(self) -> None:
        if self.gpu:
            torch.cuda._sleep(self.cycles)

    def finish(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()


def measure(rank: int, options: argparse.Namespace, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    device = torch.device(options.device, rank) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=options.processes)
    collection, other = collection_of(options.width, device), Device(device, options.busy)
    for count in options.ids:
        wanted = ids(count, rank, device)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        for turn in range(options.turns + 2):
            for name, forward in WAYS.items():
                times[name] += [step(collection, forward, wanted, other)] if turn >= 2 else []
        if rank == 0:
            for name, pairs in times.items():
                spread = [f"{np.median(t):7.2f} ({min(t):.2f} ... {max(t):.2f})" for t in zip(*pairs)]
                print(f"{count:7} ids  {name:10}  host {spread[0]}  step {spread[1]}  ms", flush=True)
    dist.destroy_process_group()


def step(collection: Any, forward: Any, wanted: SortedIds, other: Device) -> tuple[float, float]:
    """Milliseconds of the host, and of all."""
    other.finish()
    dist.barrier()
    other.work()
    began = time.perf_counter()
    answer = forward(collection, wanted)
    torch.stack([answer[name].values().sum() for name in TABLES]).sum().backward()
    started = time.perf_counter()
    other.finish()
    return 1e3 * (started - began), 1e3 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--ids", type=int, nargs="+", default=[100, 10_000, 100_000], help="of a process and step")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--busy", type=float, default=5.0)
    options = parser.parse_args()
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.multiprocessing.spawn(measure, (options, environment), nprocs=options.processes)


if __name__ == "__main__":
    main()
