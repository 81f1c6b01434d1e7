"""Which process of a run was lost, found out by those that are left.

When a process dies or hangs, the others fail in whatever collective operation comes next, with an error that names a
socket. So every process writes a beat to the store of the process group twice a second, from a thread of its own. When
an operation fails, the beats that no longer move tell who is gone, and one process says it for all.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

BEAT_SECONDS = 0.5
WATCH_SECONDS = 4.0
"""How long beats are watched before a process counts as lost: many times the interval, for machines under load."""
PATIENCE_SECONDS = 20.0
"""How long the launching process may take to say what was lost before all processes are killed."""
COLLECTIVE = re.compile(r"gloo|NCCL|connection (closed|reset|refused)|timed out|application timeout|broken pipe", re.I)
CURE = "start the same command with --ckpt_path auto to go on from the last checkpoint"


class ProcessLost(Exception):
    """Another process is gone; which one has been said."""


def tells_of_a_loss(error: BaseException) -> bool:
    """Whether an error is that of an operation in which another process did not take part."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and COLLECTIVE.search(str(error)) is not None
    )


class Heartbeat(threading.Thread):
    """Says twice a second that this process lives, and how many steps it has done.

    Args:
        rank: of this process.
        world_size: number of processes.
        steps: how many steps this process has done.
    """

    def __init__(self, rank: int, world_size: int, steps: Callable[[], int]) -> None:
        super().__init__(daemon=True, name="laser-heartbeat")
        store: Any = dist.distributed_c10d._get_default_store()
        self.store = dist.PrefixStore("laser", store)
        self.rank, self.world_size, self.steps = rank, world_size, steps
        self.ended = threading.Event()
        self.count = 0
        self._beat()
        self.start()

    def _beat(self) -> None:
        self.count += 1
        self.store.set(f"beat/{self.rank}", f"{self.count} {self.steps()}")

    def run(self) -> None:
        """Beat until ``end`` is called or the store is gone."""
        while not self.ended.wait(BEAT_SECONDS):
            try:
                self._beat()
            except RuntimeError:
                return

    def end(self) -> None:
        """Stop beating."""
        self.ended.set()
        self.join()

    def fall_silent(self) -> None:
        """Let the other processes say nothing: this one ends with an error of its own, which it reports itself."""
        try:
            self.store.add("said", 1)
        except RuntimeError:
            return  # whoever keeps the store is gone, and that is what will be said

    def find_lost(self) -> str | None:
        """What happened, in one sentence; ``None`` when another process has said it."""
        try:
            before = self._beats()
            time.sleep(WATCH_SECONDS)
            after = self._beats()
            if self.store.add("said", 1) > 1:
                return None
        except RuntimeError:
            return (
                f"process 0 of {self.world_size} was lost after step {self.steps()}: it no longer answers; was it "
                f"killed, for want of memory perhaps? {CURE}"
            )
        lost = [str(rank) for rank, beat in before.items() if beat == after[rank]]
        if not lost:
            done = ", ".join(f"{rank} after step {beat.split()[-1]}" for rank, beat in after.items())
            return (
                f"an operation of all processes was not joined by all of them in time, though each answers ({done}); "
                f"raise trainer.strategy.init_args.timeout_seconds if one had that much to do alone, or {CURE}"
            )
        step = before[int(lost[0])].split()[-1]
        return (
            f"process {' and '.join(lost)} of {self.world_size} was lost after step {step}: it no longer answers; was "
            f"it killed, for want of memory perhaps? {CURE}"
        )

    def _beats(self) -> dict[int, str]:
        names = {rank: f"beat/{rank}" for rank in range(self.world_size)}
        return {
            rank: self.store.get(name).decode() if self.store.check([name]) else "0 0" for rank, name in names.items()
        }


def say_lost(heartbeat: Heartbeat | None, world_size: int) -> None:
    """Print to stderr which process was lost, unless another process does."""
    if heartbeat is None:
        sentence: str | None = f"not all of the {world_size} processes started in time; see what the others say"
    else:
        sentence = heartbeat.find_lost()
    if sentence is not None:
        print(f"laser: {sentence}", file=sys.stderr, flush=True)


class PatientObserver(_ChildProcessObserver):
    """Kills all processes of a launch when one has failed, but lets them say why first."""

    def _terminate_all(self) -> None:
        time.sleep(PATIENCE_SECONDS)
        super()._terminate_all()


class PatientLauncher(_SubprocessScriptLauncher):
    """Starts the processes of one host as Lightning does, and watches them patiently."""

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes, if nobody else does, and run ``function`` in this one."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            PatientObserver(main_pid=os.getpid(), child_processes=self.procs, sleep_period=1).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)
