"""Processes that run side by side, each with its share of the GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from laser.study.worker import Task, save_task

LAUNCH = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
"""Variables of a launcher that the study itself may run under, or that an earlier run left."""
GRACE_SECONDS = 10.0


@dataclass
class Going:
    """A run that is going on."""

    key: str
    slot: int
    process: subprocess.Popen[bytes]
    began: float

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began


class Slots:
    """At most ``jobs`` processes at once; slot i has GPU i modulo the number of GPUs.

    Args:
        jobs: processes at once.
        gpus: of each slot in turn, as CUDA_VISIBLE_DEVICES names them; empty leaves that variable as it is.
    """

    def __init__(self, jobs: int, gpus: list[str]) -> None:
        self.jobs = jobs
        self.gpus = gpus
        self.going: dict[str, Going] = {}

    @property
    def free(self) -> bool:
        """Whether another run can start."""
        return len(self.going) < self.jobs

    def start(self, key: str, task: Task, environment: dict[str, str]) -> None:
        """Start a worker; its output goes to ``log.txt`` of its folder, after what is there."""
        slot = min(set(range(self.jobs)) - {going.slot for going in self.going.values()})
        folder = Path(task.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "record.json").unlink(missing_ok=True)
        save_task(task, folder / "task.json")
        with (folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "laser.study.worker", str(folder / "task.json")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(slot) | environment,
                start_new_session=True,  # what the run starts ends with it
            )
        self.going[key] = Going(key, slot, process, time.monotonic())

    def _environment(self, slot: int) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in LAUNCH}
        kept.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
        return kept | ({"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {})

    def ended(self) -> list[Going]:
        """Runs that have ended since the last call."""
        found = [going for going in self.going.values() if going.process.poll() is not None]
        for going in found:
            del self.going[going.key]
        return found

    def stop(self) -> None:
        """End all runs: politely, then not."""
        for signal_number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
            for going in self.going.values():
                _signal(going, signal_number)
            end = time.monotonic() + patience
            while any(going.process.poll() is None for going in self.going.values()) and time.monotonic() < end:
                time.sleep(0.05)
        self.going.clear()


def _signal(going: Going, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(going.process.pid, number)


def gpu_names(said: str | None) -> list[str]:
    """GPUs of ``--gpus``: a number takes the first so many, ``0,3`` names them; both within CUDA_VISIBLE_DEVICES.

    Raises:
        ValueError: when it is neither, or names more than are visible.
    """
    if said is None:
        return []
    if not all(part.isdigit() for part in said.split(",")) or said == "0":
        raise ValueError(f"--gpus is {said!r}, expected a number such as 2, or a list such as 0,3")
    wanted = [int(part) for part in said.split(",")] if "," in said else list(range(int(said)))
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        names = visible.split(",")
        if max(wanted) >= len(names):
            raise ValueError(f"--gpus is {said!r}, but CUDA_VISIBLE_DEVICES={visible} shows {len(names)} only")
        return [names[index] for index in wanted]
    return [str(index) for index in wanted]
