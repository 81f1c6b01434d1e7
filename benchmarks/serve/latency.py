"""Latency of a score request: from raw ids to probabilities, store read included, one request at a time.

    python benchmarks/serve/latency.py --out results [--device cuda] [--threads 2] [--lengths 200 1000 10000]
        [--candidates 1 100 1000] [--models laser naive transformer din] [--tables fp32] [--seconds 20] [--limit 90]

Random weights of the paper's widths (d = 128, segments of 10, RankMixer of 16 x 256) and a store of users with exactly
that many events. Every request is for the next user, with candidates drawn at random. Ways:

- ``laser``: histories shared over candidates, event rows kept from the request before, one event appended since;
- ``laser cold``: the same for users that were never seen;
- ``laser compiled`` (only if named): as ``laser``, with the bundle's native code;
- ``naive``: the same model, each candidate a request of its own with its own copy of the history;
- ``transformer``, ``din``: in LASER's place, between the same inputs and head, through the same scorer.

``cpu_p50_ms`` is the processor time of the process, which depends less on what else runs on the machine.
A case ends after ``--seconds`` or 1000 requests, but not before 3. p99 is the largest where there are fewer than 100.
``--limit`` shares so many seconds out among the cases. A case is left out, and says so, where a smaller one of the same
way leads to expect that three of its requests take more than six times its share, or where memory is not enough.
The report is written anew after each case.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measuring import machine

from laser.data.prepared import PreparedData
from laser.model.embeddings import initial_rows
from laser.schema import Feature, Kind, Schema, names
from laser.seqvault import SeqVault
from laser.serve import Request, Scorer
from laser.serve.network import build_network
from laser.serve.writing import Trained, write_bundle

ITEMS, USERS, NOW = 100_000, 64, 1_700_000_000
NETWORKS: dict[str, dict[str, Any]] = {
    "laser": {"class_path": "laser.model.laser.Laser", "init_args": {}},
    **{
        name: {
            "class_path": "laser.model.baselines.encoder_model.EncoderModel",
            "init_args": {"encoder": {"class_path": f"laser.model.baselines.{place}"}},
        }
        for name, place in (("transformer", "transformer.Transformer"), ("din", "din.DIN"))
    },
}
SAME_AS = {"laser cold": "laser", "laser compiled": "laser", "naive": "laser"}
AT_LEAST_MS = 200
"""What a request may take however small it is, on a busy machine: not taken for a cost that grows."""
NAIVE_AT_ONCE = 50
"""Copies of a history in memory at once."""


def schema() -> Schema:
    sized = {"table": "item", "width": 64, "cardinality": ITEMS}
    return Schema(
        "latency",
        (
            Feature(name="user", kind=Kind.USER, dtype="uint32", cardinality=1 << 20),
            Feature(name="item", kind=Kind.ITEM, dtype="uint32", **sized),
            Feature(name="category", kind=Kind.ITEM_SIDE, dtype="uint16", cardinality=1000, table="category", width=32),
            Feature(name="action", kind=Kind.EVENT_SIDE, dtype="uint8", cardinality=8, table="action", width=16),
            Feature(name="hour", kind=Kind.CONTEXT, dtype="uint8", cardinality=25, table="hour", width=16),
            Feature(name="click", kind=Kind.LABEL, dtype="uint8"),
            Feature(name="timestamp", kind=Kind.TIMESTAMP, dtype="int64"),
        ),
    )


def write_data(folder: Path, lengths: list[int], rng: np.random.Generator) -> Path:
    """A prepared data set whose users 1 + 1000 i ... have histories of the i-th length."""
    made = schema()
    folder.mkdir(parents=True)
    made.save(folder / "schema.json")
    items = {"item": np.arange(ITEMS, dtype=np.uint32), "category": rng.integers(0, 1000, ITEMS).astype(np.uint16)}
    pq.write_table(pa.table(items), folder / "items.parquet")
    with SeqVault.create(folder / "vault", made) as vault:
        for place, length in enumerate(lengths):
            users = np.repeat(1 + 1000 * place + np.arange(USERS), length)
            ages = np.sort(rng.integers(1, 10**7, (USERS, length)), axis=1)[:, ::-1].ravel()
            vault.append(users, events_of(NOW - ages, rng))
        vault.compact()
    (folder / "samples" / "test").mkdir(parents=True)
    rows = {"row": np.arange(8), "user": np.arange(1, 9, dtype=np.uint32), "item": np.arange(8, dtype=np.uint32)}
    rows |= {"timestamp": np.full(8, NOW), "click": np.zeros(8, np.uint8), "hour": np.ones(8, np.uint8)}
    pq.write_table(pa.table(rows), folder / "samples" / "test" / "part-00000.parquet")
    return folder


def events_of(timestamps: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    items = (ITEMS * rng.random(len(timestamps)) ** 3).astype(np.uint32)  # some items far more often than others
    return {"timestamp": timestamps, "item": items, "action": rng.integers(1, 8, len(items)).astype(np.uint8)}


def write_model(
    folder: Path, data: PreparedData, network: dict[str, Any], most: int, tables: Any, compiled: str | None
) -> Path:
    model = build_network(network, data.schema, seed=0)
    weights = {name: value for name, value in model.state_dict().items() if ".collections." not in name}
    sizes = data.schema.tables
    folder.mkdir(parents=True)

    def table(name: str) -> torch.Tensor:
        return initial_rows(name, 0, sizes[name].rows, sizes[name].width, 0, 0.02)

    write_bundle(folder, data, Trained(network, 0, most, weights, table, {}), tables, compiled)
    return folder


def requests(
    way: str, place: int, length: int, size: int, scorer: Scorer, rng: np.random.Generator
) -> Iterator[Callable]:
    """Timed parts of the next requests, each after what has to happen before it, untimed."""
    vault: Any = scorer.vault
    number = 0
    while True:
        user = 1 + 1000 * place + number % USERS
        number += 1
        now = NOW + number
        candidates = rng.integers(1, ITEMS, size).tolist()
        if way in ("laser", "laser compiled"):
            scorer.score(user, candidates[:1] * 4, {"hour": 1}, now)
            vault.append([user], events_of(np.array([now]), rng))
        if way == "laser cold":
            scorer.engine.rows.forget()
        if way == "naive":
            single = [Request(user, [candidate], {"hour": 1}, now + 1) for candidate in candidates]
            groups = [single[first : first + NAIVE_AT_ONCE] for first in range(0, size, NAIVE_AT_ONCE)]
            yield lambda groups=groups: [scorer.score_many(group) for group in groups]
        else:
            yield lambda user=user, candidates=candidates, now=now: scorer.score(user, candidates, {"hour": 1}, now + 1)


def measure(calls: Iterator[Callable], seconds: float) -> dict[str, Any]:
    start = time.perf_counter()
    next(calls)()
    times: list[float] = []
    processor: list[float] = []
    if time.perf_counter() - start > 6 * seconds:  # not warm, but all that there is time for
        return {"p50_ms": round(1e3 * (time.perf_counter() - start), 3), "requests": 1}
    while len(times) < 3 or (sum(times) < seconds and len(times) < 1000):
        call = next(calls)
        start, used = time.perf_counter(), time.process_time()
        call()
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return {
        "p50_ms": round(1e3 * float(np.median(times)), 3),
        "p99_ms": round(1e3 * float(np.quantile(times, 0.99) if len(times) >= 100 else max(times)), 3),
        "cpu_p50_ms": round(1e3 * float(np.median(processor)), 3),
        "requests": len(times),
    }


def expected_ms(found: list[dict[str, Any]], way: str, length: int, size: int) -> float:
    """Of a request, at least, by smaller cases of a way whose cost grows with candidates times events."""
    if way.startswith("laser"):
        return 0.0
    smaller = [
        (case.get("p50_ms", 0) - AT_LEAST_MS) * (size / case["candidates"]) * (length / case["length"]) / 2
        for case in found
        if case["way"] == way and case["candidates"] <= size and case["length"] <= length
    ]
    return max(smaller, default=0.0)


def measure_all(
    options: argparse.Namespace, bundles: dict[str, Path], vault: SeqVault, rng: np.random.Generator
) -> Iterator[list[dict[str, Any]]]:
    """All cases so far, after each."""
    found: list[dict[str, Any]] = []
    end = time.monotonic() + options.limit
    total = len(options.models) * len(options.lengths) * len(options.candidates)
    for way in options.models:
        where = {"device": options.device, "compiled": way == "laser compiled"}
        scorer = Scorer(bundles[SAME_AS.get(way, way)], vault, cache_bytes=4 << 30, **where)
        for place, length in enumerate(options.lengths):
            scorer.max_history = length  # appends do not make it longer
            for size in options.candidates:
                seconds = min(options.seconds, max(0.1, end - time.monotonic()) / (total - len(found)))
                case: dict[str, Any] = {"way": way, "length": length, "candidates": size}
                if (expected := expected_ms(found, way, length, size)) > 2e3 * seconds:
                    case["left_out"] = f"a request takes more than {expected / 1e3:.1f} s"
                else:
                    try:
                        case |= measure(requests(way, place, length, size, scorer, rng), seconds)
                    except torch.OutOfMemoryError:
                        case["left_out"] = "memory is not enough"
                found.append(case)
                print(json.dumps(case), flush=True)
                yield found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 1000, 10_000])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--models", nargs="+", default=["laser", "laser cold", "naive", "transformer", "din"])
    parser.add_argument("--tables", default="fp32")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a case")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds of all cases, about")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    work = Path(tempfile.mkdtemp())
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    about = {"device": device, "threads": options.threads, "torch": torch.__version__, "tables": options.tables}
    about |= {"event_fields": names(schema().event), **machine()}
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        data = write_data(work / "data", options.lengths, rng)
        with PreparedData(data) as prepared:
            models = {SAME_AS.get(way, way) for way in options.models}
            native = options.device if "laser compiled" in options.models else None
            bundles = {
                m: write_model(
                    work / m,
                    prepared,
                    NETWORKS[m],
                    max(options.lengths),
                    options.tables,
                    native if m == "laser" else None,
                )
                for m in models
            }
        with SeqVault.open(data / "vault", "a", sync="none") as vault:
            for found in measure_all(options, bundles, vault, rng):
                (options.out / "latency.json").write_text(json.dumps(about | {"cases": found}, indent=1))
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
