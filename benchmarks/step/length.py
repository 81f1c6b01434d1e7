"""Cost by length: LASER's training step on 100 to 100,000 events a user, and one long history among short ones.

    python benchmarks/step/length.py --out results --device cuda --total 1000000
    python benchmarks/step/length.py --out results                      # on a CPU

``--total`` events make a batch in every row: longer histories, fewer users. So a cost that is linear in the length
shows as equal ms and GB, less what each user costs; a quadratic or padded tensor would make the long rows explode. "one
of 100,000" is one user with so many events (at most half of the total) beside short ones, with as many users and events
in all as in the row of 1000. Model and optimizer as in ``peers.py``.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from workload import Step, back_to_back, device_named, group_of_one, make_batch, make_schema

sys.path.insert(0, str(Path(__file__).parents[1]))
from rows import Rows

LENGTHS = (100, 1000, 10_000, 100_000)


def spread_evenly(total: int, users: int) -> Tensor:
    """Lengths that differ by at most one."""
    lengths_U = torch.full((users,), total // users)
    lengths_U[: total % users] += 1
    return lengths_U


def one_long(total: int, users: int, longest: int) -> Tensor:
    """One long history, in the middle, and short ones."""
    return torch.cat([spread_evenly(total - longest, users - 1), torch.tensor([longest])]).roll(users // 2)


def measure(options: argparse.Namespace, device: torch.device, lengths_U: Tensor) -> dict[str, Any]:
    schema = make_schema(options.rows, options.width)
    generator = torch.Generator().manual_seed(7)
    half = device.type == "cuda"
    step = Step(
        schema, device, half=half, options={"width": options.model_width, "mixer_tokens": 8, "mixer_width": 128}
    )
    batches = [make_batch(schema, lengths_U, generator).to(device)]
    found = back_to_back(step.step, batches, device, steps=options.steps, warm_up=2)
    total = int(lengths_U.sum())
    return {
        "users": len(lengths_U),
        "longest": int(lengths_U.max()),
        "events": total,
        **found,
        "ns an event": 1e6 * found["ms"] / total,
        "bytes an event": 1e9 * found["peak_GB"] / total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--total", type=int, default=200_000, help="events of a batch")
    parser.add_argument("--rows", type=int, default=3200, help="of the item table")
    parser.add_argument("--width", type=int, default=64, help="of embeddings")
    parser.add_argument("--model_width", type=int, default=128, help="of events and segments")
    parser.add_argument("--steps", type=int, default=3, help="steps in a row, of which there are five")
    parser.add_argument("--seconds", type=float, default=90.0, help="start nothing new after so many")
    options = parser.parse_args()
    device = device_named(options.device, parser)
    if options.total < 2000:
        parser.error(f"--total is {options.total}; expected at least 2000")
    rows = Rows(options.out, "length", "A training step by length of the histories", options.seconds)
    users, longest = options.total // 1000, min(LENGTHS[-1], options.total // 2)
    lengths = [length for length in LENGTHS if length <= options.total]
    works = {f"{length:,} a user": spread_evenly(options.total, options.total // length) for length in lengths}
    works[f"one of {longest:,}"] = one_long(options.total, users, longest)
    with group_of_one(device):
        for name, lengths in works.items():
            rows.attempt(name, lambda lengths=lengths: measure(options, device, lengths))
            gc.collect()
    compare(rows, list(works))


def compare(rows: Rows, names: list[str]) -> None:
    for first, second in [(names[0], names[-2]), (names[1], names[-1])]:
        one, other = rows.rows[first], rows.rows[second]
        if "ms" in one and "ms" in other:
            time, memory = other["ms"] / one["ms"], other["peak_GB"] / max(one["peak_GB"], 1e-9)
            rows.note(f"{second} against {first}: time {time:.2f}, memory {memory:.2f}")


if __name__ == "__main__":
    main()
