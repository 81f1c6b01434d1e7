"""Batches and samples a second that the input pipeline delivers, without a model.

    python benchmarks/data/loader.py prepared/movielens_small --max-history 100 1000 --workers 0 1 2

Reads histories, joins item side info and builds tensors, over shuffled train samples. Each figure is the
median of the rounds, with the slowest and fastest; the first epoch of each setting is thrown away (page cache, compiled
kernels). ``--out`` writes the rows as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

from laser.data.loader import BatchLoader
from laser.data.prepared import CACHE_BYTES, PreparedData


def measure(data: PreparedData, split: str, seconds: float, rounds: int, **options: int) -> dict[str, float]:
    """Rates of one setting; a round is at most one epoch and at most ``seconds`` long."""
    loader = BatchLoader(data, split, shuffle=True, seed=0, **options)
    rates, events = [], 0.0
    for epoch in range(rounds + 1):
        loader.set_epoch(epoch)
        start, samples, batches, histories, total = time.perf_counter(), 0, 0, 0, 0
        for batch in loader:
            samples, batches = samples + len(batch), batches + 1
            histories, total = histories + batch.num_histories, total + len(batch.age_T)
            if time.perf_counter() - start > seconds:
                break
        elapsed = time.perf_counter() - start
        rates.append((samples / elapsed, batches / elapsed, total / elapsed))
        events = total / max(1, histories)
    measured = rates[1:]
    by_samples = [rate[0] for rate in measured]
    return {
        **options,
        "samples_per_s": statistics.median(by_samples),
        "samples_per_s_slowest": min(by_samples),
        "samples_per_s_fastest": max(by_samples),
        "batches_per_s": statistics.median(rate[1] for rate in measured),
        "events_per_s": statistics.median(rate[2] for rate in measured),
        "events_per_history": events,
    }


def main() -> None:
    """Print one row a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="prepared data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--max-history", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="longest round")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    load = os.getloadavg()[0]
    print("| max_history | workers | events a history | batches/s | samples/s (slowest ... fastest) | events/s |")
    print("|---|---|---|---|---|---|")
    with PreparedData(options.path, cache_bytes=CACHE_BYTES) as data:
        for max_history in options.max_history:
            for workers in options.workers:
                settings = {"batch_size": options.batch_size, "max_history": max_history, "workers": workers}
                row = measure(data, options.split, options.seconds, options.rounds, **settings)
                rows.append(row)
                print(
                    f"| {max_history} | {workers} | {row['events_per_history']:.0f} | {row['batches_per_s']:.1f} | "
                    f"{row['samples_per_s']:.0f} ({row['samples_per_s_slowest']:.0f} ... "
                    f"{row['samples_per_s_fastest']:.0f}) | {row['events_per_s']:.3g} |",
                    flush=True,
                )
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "load_at_start": load}
    print(f"\n{machine}, batch size {options.batch_size}, load at the end {os.getloadavg()[0]:.1f}")
    if options.out:
        options.out.write_text(json.dumps({"path": options.path.name, "host": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
