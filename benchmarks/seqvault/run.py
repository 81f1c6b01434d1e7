"""Compare the store with its peers on one workload: ``python benchmarks/seqvault/run.py --users 20000``.

Warm reads are interleaved, batch by batch, so that all engines meet the same weather. Cold reads evict the engine's
files from the page cache first (the hypervisor's cache below is out of reach). Writes JSON and Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from engines import DerivedEngine, bytes_on_disk, engines
from workload import READ, Recorded, Workload
from writes import own_figures

COLUMNS = (
    "bytes/event",
    "warm p50 ms",
    "warm p99 ms",
    "users/s",
    "CPU s/1k users",
    "cold p50 ms",
    "open ms",
    "appends/s",
)


def cpu_seconds(engine: Any) -> float:
    """CPU of this process, and of the server that an engine runs."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    seconds = own.ru_utime + own.ru_stime
    if (process := getattr(engine, "process", None)) is not None:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def warm(all_engines: list[Any], batches: list[np.ndarray]) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {engine.name: [] for engine in all_engines}
    cpu = dict.fromkeys(times, 0.0)
    for engine in all_engines:
        for batch in batches[:10]:
            engine.read(batch)
    for batch in batches:
        for engine in all_engines:
            start, used = time.perf_counter(), cpu_seconds(engine)
            engine.read(batch)
            times[engine.name].append(time.perf_counter() - start)
            cpu[engine.name] += cpu_seconds(engine) - used
    users = sum(map(len, batches))
    return {
        name: {
            "warm p50 ms": float(np.percentile(values, 50) * 1e3),
            "warm p99 ms": float(np.percentile(values, 99) * 1e3),
            "users/s": users / sum(values),
            "CPU s/1k users": cpu[name] / users * 1e3,
        }
        for name, values in times.items()
    }


def evict(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def cold(engine: Any, batches: list[np.ndarray]) -> dict[str, float]:
    durations, opened = [], []
    for batch in batches:
        engine.close()
        evict(engine.folder)
        start = time.perf_counter()
        engine.open()
        opened.append(time.perf_counter() - start)
        engine.read(batch[:1])
        start = time.perf_counter()
        engine.read(batch)
        durations.append(time.perf_counter() - start)
    return {"cold p50 ms": float(np.median(durations) * 1e3), "open ms": float(np.median(opened) * 1e3)}


def append_rate(engine: Any, users: np.ndarray, seconds: float) -> float:
    """Appends of one event per call, each 16th followed by a read of that user."""
    event = {name: values[:1] for name, values in next(Workload.of(1000, 9).blocks())[2].items()}
    event["time"] = event["time"] * 0 + engine.read(np.unique(users).astype(np.uint64))["time"].max() + 1
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(16):
            user = int(users[count % len(users)])
            engine.append(user, event)
            count += 1
        assert engine.read(np.array([user], np.uint64))["time"][-1] == event["time"][0]
    return count / (time.perf_counter() - start)


def agree(all_engines: list[Any], batch: np.ndarray) -> None:
    expected = all_engines[0].read(batch)
    for engine in all_engines[1:]:
        found = engine.read(batch)
        for name in READ:
            if getattr(engine, "ids", "raw") == "codes" and found[name].dtype != expected[name].dtype:
                continue
            np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{engine.name} {name}")


def measure(folder: Path, workload: Workload | Recorded, num_batches: int) -> dict[str, Any]:
    all_engines, seed = engines(folder), workload.seed
    if isinstance(workload, Recorded):  # its authors do not follow from its items
        all_engines = [engine for engine in all_engines if not isinstance(engine, DerivedEngine)]
    events, rows = int(workload.lengths.sum()), {}
    for engine in all_engines:
        start = time.perf_counter()
        engine.build(workload)
        rows[engine.name] = {
            "load s": time.perf_counter() - start,
            "bytes/event": bytes_on_disk(engine.folder) / events,
        }
        engine.open()
        if engine.name == "SeqVault":
            stats = engine.vault.stats()
            rows[engine.name] |= {f"loaded: {n}": stats[n] for n in ("index_bytes_per_user", "extents_per_user")}
        print(f"{engine.name}: built in {rows[engine.name]['load s']:.1f} s", flush=True)
    batches = workload.batches(num_batches, seed + 2)
    agree(all_engines, batches[0])
    for name, figures in warm(all_engines, batches).items():
        rows[name] |= figures
    for engine in all_engines:
        rows[engine.name] |= cold(engine, workload.batches(10, seed + 3))
    for engine in all_engines:
        if engine.append is not None:
            rows[engine.name]["appends/s"] = append_rate(engine, np.concatenate(batches), 3.0)
        engine.close()
    rows["SeqVault"] |= own_figures(folder / "seqvault", workload)
    return {"users": len(workload.users), "events": events, "batches": num_batches, "engines": rows}


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"# SeqVault and peers, {result['date']}",
        "",
        f"{result['users']:,} users, {result['events']:,} events, batches of 256 users, newest 1000 events of "
        f"6 columns; {result['hardware']}; "
        f"load average before {result['load before']:.1f}, after {result['load after']:.1f}.",
        "",
        "| engine | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, row in result["engines"].items():
        lines.append(f"| {name} | " + " | ".join(_figure(row.get(column)) for column in COLUMNS) + " |")
    ours = result["engines"]["SeqVault"]
    lines += ["", "Times SeqVault is faster (users/s, CPU, cold) and its size relative to theirs:", ""]
    for name, row in result["engines"].items():
        if not name.startswith("SeqVault"):
            lines.append(
                f"- {name}: {ours['users/s'] / row['users/s']:.1f}x users/s, "
                f"{row['CPU s/1k users'] / ours['CPU s/1k users']:.1f}x less CPU, "
                f"{row['cold p50 ms'] / ours['cold p50 ms']:.1f}x cold, "
                f"{ours['bytes/event'] / row['bytes/event']:.2f}x the bytes"
            )
    lines += ["", "SeqVault alone:", ""]
    lines += [f"- {name}: {_figure(value)}" for name, value in ours.items() if name not in COLUMNS]
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=20_000, help="200000 is full scale")
    parser.add_argument("--globo", type=Path, help="measure on these real clicks instead (Parquet, one row a click)")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--folder", type=Path, help="where to build the stores; a temporary folder by default")
    options = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.globo:
            workload: Workload | Recorded = Recorded.of(options.globo, options.seed)
        else:
            workload = Workload.of(options.users, options.seed)
        result = measure(Path(folder), workload, options.batches)
    hardware = f"{os.cpu_count()} CPUs {_cpu_name()}, Linux {platform.release()}, Python {platform.python_version()}"
    result |= {"date": date.today().isoformat(), "hardware": hardware}
    result |= {"load before": before, "load after": os.getloadavg()[0]}
    options.out.mkdir(parents=True, exist_ok=True)
    stem = (
        options.out
        / f"seqvault_{os.cpu_count()}cpu_{'globo' if options.globo else f'{options.users}users'}_{result['date']}"
    )
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
