"""Seconds of each stage of one preparation, and its peak memory, as JSON on the last line.

python benchmarks/data/stages.py RECIPE OUT --memory 8GB
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.pipeline import prepare
from data_prep.progress import Stages


def record(seconds: dict[str, float]) -> None:
    """Let every stage note how long it took."""
    for kind in ("counted", "query"):
        setattr(Stages, kind, _timed(getattr(Stages, kind), seconds))


def _timed(stage: Any, seconds: dict[str, float]) -> Any:
    @contextmanager
    def timed(self: Stages, name: str, *rest: Any) -> Iterator[Any]:
        start = time.perf_counter()
        with stage(self, name, *rest) as advance:
            yield advance
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--memory")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    stages: dict[str, float] = {}
    record(stages)
    start = time.perf_counter()
    report = prepare(options.recipe, options.out, memory=options.memory, threads=options.threads)
    seconds = time.perf_counter() - start
    rows = {split: part["samples"] for split, part in report["samples"].items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"seconds": seconds, "peak_bytes": peak, "rows": rows, "events": report["events"], "stages": stages}
    print(json.dumps(found | {"disk_bytes": report["disk_bytes"]}))


if __name__ == "__main__":
    main()
