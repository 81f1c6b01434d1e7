"""Verify every op on a GPU, then measure it: one command, under three minutes, everything needed to fix what fails.

    PYTHONPATH=src python benchmarks/ops/check_gpu.py --out results

Needs torch, Triton and numpy only. Prints a table, full tracebacks of what failed (it goes on), and writes
``ops.json`` and ``ops.md`` under ``--out``. Without a GPU it runs the CPU paths in a reduced shape.

Shape W1: B=2048 histories of L=1000 events, width 10, D=128, H=2, bfloat16 (and float32). Floors: x read once and
pooled written, at the rate of a device copy measured in the same run; with gates, those too (backward: x and d_pooled
read, d_x written). Kernels are timed over ten calls in a row, so that launching hides behind computing.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import dense
import gather
import mixed
import recurrence
import torch
from checks import correctness
from harness import CUDA, Report, copy_rate
from measures import measure


def write(report: Report, out: Path, machine: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "ops.json").write_text(json.dumps({"machine": machine, "rows": report.rows}, indent=1))
    lines = ["# Ops", "", ", ".join(f"{k} {v}" for k, v in machine.items()), "", "| what | result |", "|---|---|"]
    for row in report.rows:
        values = {k: v for k, v in row.items() if k != "what"}
        shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        lines.append(f"| {row['what']} | {shown} |")
    (out / "ops.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seconds", type=float, default=170.0, help="start nothing new after this many seconds")
    parser.add_argument("--only", default="", help="checks and measurements whose name has this in it")
    parser.add_argument("--checks", action="store_true", help="measure nothing; exit with 1 if a check fails")
    options = parser.parse_args()
    machine = {
        "device": torch.cuda.get_device_name() if CUDA else platform.processor() or "cpu",
        "torch": torch.__version__,
    }
    if CUDA:
        import triton

        machine["triton"] = triton.__version__
    print(machine, flush=True)
    report = Report(options.seconds, options.only)
    correctness(report)
    dense.correctness(report)
    gather.correctness(report)
    recurrence.correctness(report)
    mixed.correctness(report)
    if not options.checks:
        measure(report)
        dense.measure(report, copy_rate())
        recurrence.measure(report)
    write(report, options.out, machine)
    bad = [row["what"] for row in report.rows if "failed" in row or row.get("ok") is False]
    print(f"{len(bad)} failed: {bad}" if bad else "all checks passed")
    if options.checks and (bad or not report.rows):
        raise SystemExit(1 if bad else f"no check has {options.only!r} in its name")


if __name__ == "__main__":
    main()
