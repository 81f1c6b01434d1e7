"""The process of one run: ``laser fit``, ``laser test``, and what they found in ``record.json``.

    python -m laser.study.worker TASK.json

It does not outlive the study: two processes in one run folder would spoil it.
"""

from __future__ import annotations

import csv
import ctypes
import json
import math
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from laser.study.store import FITTED
from laser.versions import code_versions

PR_SET_PDEATHSIG = 1
MEASURE = """trainer:
  max_steps: 50
  max_epochs: -1
  limit_val_batches: 0
  enable_checkpointing: false
  logger: false
  callbacks: [{class_path: laser.train.measuring.CostMeasurement}]
"""
"""Recipe over that of a run: steps, and nothing beside them."""
Purpose = Literal["tuning", "final", "costs"]
QUIET = "--trainer.enable_progress_bar=false"


@dataclass(frozen=True)
class Task:
    """What a worker is to do.

    Args:
        arguments: of the run.
        folder: of the run, with checkpoints.
        purpose: "tuning" trains, "final" trains and tests, "costs" measures and does neither to the end.
        parent: process of the study.
        facts: go into the record as they are.
    """

    arguments: list[str]
    folder: str
    purpose: Purpose
    parent: int
    facts: dict[str, Any]


def main(path: str) -> int:
    """Do the task; the record is written last."""
    task = Task(**json.loads(Path(path).read_text()))
    die_with(task.parent)
    folder = Path(task.folder)
    arguments = [*task.arguments, f"--trainer.default_root_dir={folder}", QUIET]
    found = measure(folder, arguments) if task.purpose == "costs" else train(folder, arguments, task.purpose == "final")
    finished = {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "versions": code_versions()}
    write(folder / "record.json", {**task.facts, **found, **finished})
    return 0


def train(folder: Path, arguments: list[str], test: bool) -> dict[str, Any]:
    """Train, unless that was done, and test if asked to; the best validation, and seconds of both."""
    from laser.train.command_line import run_training

    seconds: dict[str, float] = {}
    if not (folder / FITTED).exists():
        began = time.monotonic()
        run_training(["fit", *arguments, "--ckpt_path=auto"])
        seconds["fit"] = round(time.monotonic() - began, 1)
        (folder / FITTED).touch()
    if test:
        began = time.monotonic()
        run_training(["test", *arguments])
        seconds["test"] = round(time.monotonic() - began, 1)
    return {"validation": best_validation(folder / "metrics.csv"), "tested": test, "seconds": seconds}


def measure(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Train for some steps and measure; what was found."""
    from laser.train.command_line import run_training

    (folder / "measure.yaml").write_text(MEASURE)
    run_training(["fit", *arguments, "-c", str(folder / "measure.yaml")])
    return {"costs": json.loads((folder / "costs.json").read_text())}


def die_with(parent: int) -> None:
    """Let the kernel end this process when the study's ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def best_validation(path: Path) -> dict[str, float]:
    """Metrics of the validation with the highest AUC, and its epoch.

    Raises:
        ValueError: when no validation has an AUC.
    """
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/auc")]
    rows = [row for row in rows if not math.isnan(float(row["val/auc"]))]
    if not rows:
        raise ValueError(f"{path} has no validation with an AUC; the split has one class only, or training was cut off")
    best = max(rows, key=lambda row: float(row["val/auc"]))
    metrics = {name.removeprefix("val/"): float(value) for name, value in best.items() if name.startswith("val/")}
    return {**metrics, "epoch": int(best["epoch"]), "epochs": len(rows)}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def save_task(task: Task, path: Path) -> None:
    """Write a task for ``main``."""
    write(path, asdict(task))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
