"""CPU time of a batch's parts on one thread: reads with and without decoded histories in memory, the rest of the batch,
and event vectors from items once a batch and once an event, forward and backward.

    python benchmarks/data/parts.py prepared/movielens_small --batch-size 256 --max-history 200 --width 64

Medians in milliseconds, with the lowest and highest; the parts take turns, so that other work on the machine meets all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from laser.batch import Batch
from laser.data.collate import Collator, distinct_requests
from laser.data.distinct import distinct_ids
from laser.data.prepared import CACHE_BYTES, PreparedData
from laser.model.laser import Laser
from laser.schema import Schema


def with_distinct(schema: Schema, batch: Batch) -> Batch:
    """The batch event by event, with its distinct ids."""
    batch = batch.by_event()
    groups = ({n: ids.numpy() for n, ids in g.items()} for g in (batch.history, batch.target, batch.context))
    found = [{n: torch.from_numpy(ids) for n, ids in part.items()} for part in distinct_ids(schema, *groups)]
    return replace(batch, distinct=found[0], place=found[1])


def events_both_ways(network: Laser, batch: Batch) -> None:
    """Look-up and event vectors, forward and backward."""
    network._events(network.embeddings(batch), batch).sum().backward()


def main() -> None:
    """Print one row a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="prepared data set")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--max-history", type=int, default=1000)
    parser.add_argument("--width", type=int, default=128, help="of event vectors; 0 leaves them out")
    parser.add_argument("--cache-bytes", type=int, default=CACHE_BYTES)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if not (options.path / "schema.json").is_file():
        parser.error(f"{options.path} is no prepared data set; give the folder that laser-prep wrote")
    torch.set_num_threads(1)
    times: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, work: Callable[..., object], *arguments: Any, **named: Any) -> None:
        began = time.thread_time()
        work(*arguments, **named)
        times[name].append(1e3 * (time.thread_time() - began))

    with PreparedData(options.path) as plain, PreparedData(options.path, cache_bytes=options.cache_bytes) as cached:
        samples, network = plain.split("train"), None
        if options.width:
            network = Laser(plain.schema, width=options.width, mixer_tokens=8, mixer_width=64)
        for index in range(options.rounds + 2):
            if index == 2:
                times.clear()
            rows = np.random.default_rng(index).permutation(len(samples))[: options.batch_size]
            chosen = samples.take(rows)
            user_U, time_U, _ = distinct_requests(chosen.user_N.astype(np.int64), chosen.timestamp_N)
            for name, data in (("read", plain), ("found in memory", cached)):
                collate = Collator(data, options.max_history)
                timed(name, data.read, user_U, time_U, options.max_history)
                timed(f"whole batch by {name}", collate.packed, chosen, rows, step=0, global_size=len(rows))
            batch = collate(chosen, rows, step=0, global_size=len(rows))
            if network is not None:
                timed("event vectors by item", events_both_ways, network, batch)
                timed("event vectors by event", events_both_ways, network, with_distinct(plain.schema, batch))
    items = len(batch.items[plain.schema.item.name])
    print(f"{options.batch_size} samples, {len(batch.age_T):,} events of {items:,} items in the last batch")
    for name, found in times.items():
        print(f"{name:28} {statistics.median(found):8.2f} ({min(found):.2f} ... {max(found):.2f})")


if __name__ == "__main__":
    main()
