"""Errors and ends of processes whose run has lost one, and a launcher that lets them say so (``heartbeat.py``)."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from subprocess import Popen
from typing import Any, NoReturn

import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from laser.saying import leave

LOST = 3
"""Exit code when another process of the run was lost."""
PATIENCE_SECONDS = 20.0
"""How long a process may take to end by itself once a loss was noticed, before it is ended."""
COLLECTIVE = re.compile(r"gloo|NCCL|connection (closed|reset|refused)|timed out|application timeout|broken pipe", re.I)


class ProcessLost(Exception):
    """Another process is gone; which one has been said."""


def tells_of_a_loss(error: BaseException) -> bool:
    """Whether an error is that of an operation in which another process did not take part."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and COLLECTIVE.search(str(error)) is not None
    )


def leave_lost() -> NoReturn:
    """End this process with code 3, without destructors: those of a process group that lost a member wait or abort."""
    sys.stdout.flush()
    leave()
    os._exit(LOST)


class PatientObserver(_ChildProcessObserver):
    """Ends all processes of a launch when one has failed, but lets them say why first.

    Args:
        leave_if_lost: says which process was lost and ends this one; returns if that cannot be told.
        main_pid: of this process.
        child_processes: that it has launched.
    """

    def __init__(self, leave_if_lost: Callable[[], None], main_pid: int, child_processes: list[Popen]) -> None:
        super().__init__(main_pid, child_processes, sleep_period=1)
        self.leave_if_lost = leave_if_lost

    def _terminate_all(self) -> None:
        if any((process.returncode or 0) < 0 for process in self._child_processes):
            self.leave_if_lost()  # a killed one says nothing, and this one's main thread may wait for it for ever
        time.sleep(PATIENCE_SECONDS)
        self.leave_if_lost()
        super()._terminate_all()


class PatientLauncher(_SubprocessScriptLauncher):
    """Starts the processes of one host as Lightning does, and watches them patiently.

    Args:
        leave_if_lost: for ``PatientObserver``.
        cluster_environment: of the strategy.
        num_processes: on this host.
        num_nodes: number of hosts.
    """

    def __init__(
        self,
        leave_if_lost: Callable[[], None],
        cluster_environment: ClusterEnvironment,
        num_processes: int,
        num_nodes: int,
    ) -> None:
        super().__init__(cluster_environment, num_processes, num_nodes)
        self.leave_if_lost = leave_if_lost
        self.starting, self.told = True, False

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes, if nobody else does, and run ``function`` in this one.

        Until ``leave_signals``, SIGTERM to this process ends the others, too.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            in_main_thread = threading.current_thread() is threading.main_thread()  # no other may catch signals
            if in_main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
                signal.signal(signal.SIGTERM, self._end_with_launched)
            self._call_children_scripts()
            self.starting = False
            if self.told:
                self._end_with_launched(signal.SIGTERM, None)
            PatientObserver(self.leave_if_lost, os.getpid(), self.procs).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _end_with_launched(self, number: int, _frame: Any) -> None:
        """End as a process that does not catch the signal, and the others, which would wait for this one."""
        if self.starting:  # one of them may not be among ``procs`` yet
            self.told = True
            return
        self.kill(signal.Signals(number))
        self.leave_signals()
        os.kill(os.getpid(), number)

    def leave_signals(self) -> None:
        """From now on others catch SIGTERM."""
        if signal.getsignal(signal.SIGTERM) == self._end_with_launched:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
