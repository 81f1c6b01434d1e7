"""Preparation of a large synthetic log by stages, against Polars and pandas, and its memory at a tenth of the size.

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install -r benchmarks/data/requirements.txt
    python benchmarks/data/prepare.py --events 100000000 --peers /tmp/peers/bin/python

Each run is a process of its own on ``--cores`` cores. Peers run without a limit of memory: they have no such setting.
Results go to benchmarks/results/ as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from data_prep.synthetic.world import World

HERE = Path(__file__).parent


def run(*command: Any) -> dict[str, Any]:
    """The JSON on the last line of a process's output, or how it failed."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"failed": "killed, for want of memory" if done.returncode == -9 else f"exit code {done.returncode}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def synthesize(raw: Path, events: int, cores: int) -> dict[str, Any]:
    start = time.perf_counter()
    command = [sys.executable, "-m", "data_prep.cli", "synthetic", raw, "--events", events, "--processes", cores]
    running = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(running.pid, 0)
    assert status == 0, f"laser-prep synthetic: wait status {status}"
    seconds = time.perf_counter() - start
    made = json.loads((raw / "truth.json").read_text())["all"]["events"]
    size = sum(path.stat().st_size for path in (raw / "log").iterdir())
    # Of the largest of its processes.
    return {"seconds": seconds, "events": made, "bytes": size, "peak_bytes": usage.ru_maxrss * 1024}


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"sizes": {}}
    for events in (options.events // 10, options.events):
        raw = work / f"raw-{events}"
        world = World(events=events)
        size: dict[str, Any] = {"synthetic": synthesize(raw, events, options.cores)}
        limits = ["--memory", options.memory, "--threads", options.cores]
        size["laser-prep"] = run(sys.executable, HERE / "stages.py", raw / "recipe.yaml", work / "prepared", *limits)
        shutil.rmtree(work / "prepared", ignore_errors=True)
        if options.peers is not None:
            splits = ["--validation", world.boundaries[0], "--test", world.boundaries[1]]
            for engine in ("polars", "pandas"):
                size[engine] = run(options.peers, HERE / "peers.py", engine, raw, work / engine, *splits)
                shutil.rmtree(work / engine, ignore_errors=True)
                _agree(size["laser-prep"], size[engine], engine)
        shutil.rmtree(raw)
        found["sizes"][str(events)] = size
    return found


def _agree(ours: dict[str, Any], theirs: dict[str, Any], engine: str) -> None:
    """No figure for work that came out different."""
    if "failed" not in ours and "failed" not in theirs:
        assert ours["rows"] == theirs["rows"], (engine, ours["rows"], theirs["rows"])


def markdown(found: dict[str, Any]) -> str:
    lines = [
        f"# Preparing synthetic logs, {found['date']}",
        "",
        f"{found['hardware']}. Command: `{found['command']}`.",
        "",
    ]
    lines.append(f"laser-prep under --memory {found['memory']}; peers unlimited. One run each; events in millions.")
    for size in found["sizes"].values():
        events = size["synthetic"]["events"]
        lines += [
            "",
            f"## {events / 1e6:.1f} M events",
            "",
            "| what | seconds | events/s | peak memory |",
            "|---|--:|--:|--:|",
        ]
        for name, row in size.items():
            if "failed" in row:
                lines.append(f"| {name} | {row['failed']} | | |")
                continue
            peak = f"{row['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in row else ""
            lines.append(f"| {name} | {row['seconds']:.1f} | {events / row['seconds']:,.0f} | {peak} |")
            for stage, seconds in row.get("stages", {}).items():
                lines.append(f"| – {stage} | {seconds:.1f} | {events / max(seconds, 1e-9):,.0f} | |")  # noqa: RUF001
    lines += [
        "",
        "Peers code ids, sort histories and write samples; laser-prep also checks every row, packs the history",
    ]
    lines.append("store, looks for leakage in every sample and writes the report.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000_000)
    parser.add_argument("--memory", default="8GB")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--peers", type=Path, help="interpreter with benchmarks/data/requirements.txt installed")
    parser.add_argument("--work", type=Path, help="folder for temporary files; about 60 bytes an event")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        found = measure(options, Path(work))
    found |= {"date": f"{datetime.date.today()}", "memory": options.memory}
    found["hardware"] = (
        f"{options.cores} cores of {platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    )
    found["command"] = " ".join(["python", "benchmarks/data/prepare.py", *sys.argv[1:]])
    name = f"data_prep_{options.cores}cpu_{options.events}events_{found['date']}"
    (options.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / f"{name}.md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
