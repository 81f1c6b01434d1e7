"""What the loader's threads cost, and what they take from a thread that works beside them.

    python benchmarks/data/beside.py prepared/assistments2017 --workers 1 2 4 --calls 0 400

The main thread takes a batch, then makes ``--calls`` small calls of torch with a little Python between them, as a
training step does; each such call gives the interpreter's lock away for a moment. Batches lie in memory that is used
again, like page-locked memory on a GPU's host. A row tells, per batch: the step and its parts, waiting for the batch
and working (means), the longest single call with its Python, and what all other threads used: CPU time, page faults
and how often they gave up their core to wait, for the lock above all. Rows with 0 workers measure the work alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

from laser.data.loader import BatchLoader
from laser.data.prepared import CACHE_BYTES, PreparedData

FIELDS = ("step", "wait", "work", "longest", "user", "system", "faults", "switches")


class Memories:
    """Buffers for batches, used in turn."""

    def __init__(self, count: int, size: int) -> None:
        self.flats = [torch.zeros(size, dtype=torch.uint8) for _ in range(count)]
        self.turn = itertools.count()

    def __call__(self, size: int) -> torch.Tensor:
        """The next one; what was in it is overwritten."""
        return self.flats[next(self.turn) % len(self.flats)][:size]


def others() -> np.ndarray:
    """User and system ms, page faults, voluntary switches of all threads but the calling one, ended ones included."""
    whole, own = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_THREAD)
    return np.array([
        1e3 * (whole.ru_utime - own.ru_utime), 1e3 * (whole.ru_stime - own.ru_stime),
        whole.ru_minflt - own.ru_minflt, whole.ru_nvcsw - own.ru_nvcsw,
    ])  # fmt: skip


def work(calls: int) -> float:
    """A step's host work; returns its longest call in ms."""
    values, longest = torch.zeros(8), 0.0
    for _ in range(calls):
        start = time.perf_counter()
        values.add_(1.0)
        sum(range(500))
        longest = max(longest, time.perf_counter() - start)
    return 1e3 * longest


def measure(loader: BatchLoader, batches: int, warm_up: int, calls: int) -> dict[str, float]:
    """Means over ``batches``; ``longest`` is the 99th percentile."""
    batch, waits, works, longest = iter(loader), [], [], []
    before = np.zeros(4)
    for index in range(warm_up + batches):
        if index == warm_up:
            before = others()
        start = time.perf_counter()
        next(batch)
        taken = time.perf_counter()
        longest.append(work(calls))
        waits.append(1e3 * (taken - start))
        works.append(1e3 * (time.perf_counter() - taken))
    used = (others() - before) / batches
    wait, worked = float(np.mean(waits[warm_up:])), float(np.mean(works[warm_up:]))
    found = (wait + worked, wait, worked, float(np.quantile(longest[warm_up:], 0.99)), *used.tolist())
    batch.close()
    return dict(zip(FIELDS, found, strict=True))


def main() -> None:
    """Print one row a setting and round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="prepared data set")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--max-history", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--calls", type=int, nargs="+", default=[0, 400], help="of torch in a step")
    parser.add_argument("--interval-ms", type=float, nargs="+", default=[5.0], help="the interpreter's switch interval")
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not (options.path / "schema.json").is_file():
        parser.error(f"{options.path} is no prepared data set; give the folder that laser-prep wrote")
    torch.set_num_threads(1)
    rows = []
    print("| workers | calls | interval ms | " + " | ".join(FIELDS) + " |\n" + "|---" * (3 + len(FIELDS)) + "|")
    with PreparedData(options.path, cache_bytes=CACHE_BYTES) as data:
        for _ in range(options.rounds):
            for workers, calls, interval in itertools.product(options.workers, options.calls, options.interval_ms):
                sys.setswitchinterval(interval / 1e3)
                loader = BatchLoader(
                    data, "train", batch_size=options.batch_size, max_history=options.max_history, shuffle=True,
                    seed=0, workers=workers,
                )  # fmt: skip
                loader.transfer.memory = Memories(loader.prefetch + workers + 2, 48 << 20)
                row = {"workers": workers, "calls": calls, "interval_ms": interval}
                row |= measure(loader, options.batches, 10, calls)
                rows.append(row)
                print("| " + " | ".join(f"{value:.4g}" for value in row.values()) + " |", flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
