"""LASER's training step beside those of DIN, ETA and SDIM: samples a second and peak memory, in one run.

    python benchmarks/step/peers.py --out results --device cuda
    python benchmarks/step/peers.py --batch 32 --events 40 --steps 2          # tiny, on a CPU

Equal for all: batches that are already on the device, three fields an event, embeddings of 64, up to ``--events``
events, ``--batch`` samples, Adam (Adagrad for LASER's tables on a CPU, where Adam has no kernel). Two kinds of
histories: all of them full, and of 0 to 0.8 x ``--events`` events, a mean of 0.4 as in ASSISTments-2017 at 1000; the
peers pad both to ``--events``, as FuxiCTR does. Peers run in TF32, as published, and under bfloat16 autocast; ratios
are to the faster. The peers are our own equivalents: ``padded_peers.py`` says what they are.

LASER is the model of ``conf/assistments.yaml`` without dropout, under bfloat16 autocast. With 8 candidates a request
the samples of a request share one history: once with as many samples, once with as many histories.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from padded_peers import PEERS, PeerModel, PeerStep, padded
from workload import Step, back_to_back, device_named, group_of_one, make_batch, make_schema

from laser.batch import Batch
from laser.schema import Schema
from laser.train.optim import TableOptimizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from rows import Rows

CANDIDATES = 8
LASER_OPTIONS = {"width": 128, "mixer_tokens": 8, "mixer_width": 128, "embedding_std": 0.3}


class Comparison:
    """The rows of one kind of histories.

    Args:
        options: of the command line.
        device: where all train.
        kind: name of the kind.
        longest: events of the longest history.
        shortest: of the shortest.
    """

    def __init__(
        self, options: argparse.Namespace, device: torch.device, kind: str, shortest: int, longest: int
    ) -> None:
        self.options, self.kind, self.range = options, kind, (shortest, longest)
        self.device = device
        self.schema: Schema = make_schema(options.rows, options.width)

    def batches(self, histories: int, candidates: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(7)
        low, high = self.range
        return [
            make_batch(
                self.schema,
                torch.randint(low, high + 1, (histories,), generator=generator),
                generator,
                candidates=candidates,
            ).to(self.device)
            for _ in range(2)
        ]

    def timed(self, step: Callable[[Any], object], batches: Sequence[Any], samples: int) -> dict[str, Any]:
        found = back_to_back(step, batches, self.device, steps=self.options.steps)
        return {"samples/s": 1e3 * samples / found["ms"], **found}

    def laser(self, histories: int, candidates: int, half: bool) -> dict[str, Any]:
        batches = self.batches(histories, candidates)
        adam = TableOptimizer(name="adam", learning_rate=1e-3)
        table = adam if self.device.type == "cuda" else None
        step = Step(self.schema, self.device, half=half, table=table, options=LASER_OPTIONS)
        return self.timed(step.step, batches, histories * candidates)

    def peer(self, name: str, half: bool, compiled: bool) -> dict[str, Any]:
        batches = [padded(batch, self.options.events) for batch in self.batches(self.options.batch, 1)]
        torch.manual_seed(0)
        cardinalities = [feature.cardinality or 0 for feature in self.schema.history]
        context = self.schema.context[0].cardinality or 0
        step = PeerStep(PeerModel(name, cardinalities, context, self.options.width), self.device, half)
        if compiled:
            step.model = torch.compile(step.model)
        return self.timed(step.step, batches, self.options.batch)

    def run(self, rows: Rows) -> None:
        batch, half = self.options.batch, self.device.type == "cuda"
        precision = "bfloat16" if half else "float32"
        label = f"{self.kind}: LASER, {precision}"
        works: dict[str, Callable[[], dict[str, Any]]] = {
            label: partial(self.laser, batch, 1, half),
            f"{label}, {CANDIDATES} candidates, as many samples": partial(
                self.laser, batch // CANDIDATES, CANDIDATES, half
            ),
            f"{label}, {CANDIDATES} candidates, as many histories": partial(self.laser, batch, CANDIDATES, half),
        }
        for compiled in [False, True] if self.options.compile else [False]:
            for peer_half in [False, True] if half else [False]:
                for name in self.options.peers:
                    plain = "TF32" if half else "float32"
                    told = f"{name}, {'bfloat16' if peer_half else plain}{', compiled' if compiled else ''}"
                    works[f"{self.kind}: {told}"] = partial(self.peer, name, peer_half, compiled)
        found = {}
        for name, work in works.items():
            if (row := rows.attempt(name, work)) is not None:
                found[name] = row
            gc.collect()  # a model and its gradients refer to each other
        self.ratios(rows, found, label)

    def ratios(self, rows: Rows, found: dict[str, dict[str, Any]], label: str) -> None:
        if label not in found:
            return
        ours, peers = found[label], {name: row for name, row in found.items() if "LASER" not in name}
        din = {name: row for name, row in peers.items() if ": DIN" in name}
        din_in_tf32 = {name: row for name, row in din.items() if "bfloat16" not in name}
        for title, against in (("fastest peer", peers), ("DIN", din), ("DIN", din_in_tf32)):
            if against:
                name = max(against, key=lambda each: against[each]["samples/s"])
                rate = ours["samples/s"] / against[name]["samples/s"]
                memory = ours["peak_GB"] / max(against[name]["peak_GB"], 1e-9)
                rows.note(
                    f"{self.kind}: samples/s of LASER / {title} ({name}) {rate:.2f}; peak memory {memory:.2f} of it"
                )
        for name, row in found.items():
            if "candidates" in name:
                rows.note(f"{name} / 1 candidate: {row['samples/s'] / ours['samples/s']:.2f} in samples/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=1024, help="samples of a step, a multiple of 8")
    parser.add_argument("--events", type=int, default=1000, help="events of the longest history")
    parser.add_argument("--rows", type=int, default=3200, help="of the item table")
    parser.add_argument("--width", type=int, default=64, help="of embeddings")
    parser.add_argument("--steps", type=int, default=10, help="steps in a row, of which there are five")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--compile", action="store_true", help="the peers also through torch.compile")
    parser.add_argument("--seconds", type=float, default=90.0, help="start nothing new after so many")
    options = parser.parse_args()
    device = device_named(options.device, parser)
    if options.batch % CANDIDATES or options.batch < CANDIDATES:
        parser.error(f"--batch is {options.batch}; expected a multiple of {CANDIDATES}")
    torch.set_float32_matmul_precision("high")  # TF32
    rows = Rows(options.out, "peers", "LASER's training step beside its peers'", options.seconds)
    with group_of_one(device):
        Comparison(options, device, "full", options.events, options.events).run(rows)
        Comparison(options, device, "mean 0.4", 0, int(0.8 * options.events)).run(rows)


if __name__ == "__main__":
    main()
