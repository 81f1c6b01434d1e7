"""SIGTERM in a run of several processes: all of them end after the same step, whichever was told.

Lightning has every step begin with a broadcast, on the device, of whether process 0 was told, and the host waits for
the answer: for all of the step before. Its signal handler broadcasts, too, in between other collectives. Here the hosts
ask each other over gloo, and the answer is read a step later, when it has long arrived.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException

ENDED = 143
"""Exit code of a run that SIGTERM ended, 128 + 15 as of a process that does not catch it."""


class Ending:
    """Lets the processes of a trainer end together.

    Args:
        trainer: of one of several processes.
        hosts: a gloo group of all of them, or ``None`` for the common one, which then is one.
    """

    def __init__(self, trainer: pl.Trainer, hosts: dist.ProcessGroup | None) -> None:
        self.trainer, self.hosts = trainer, hosts
        self.told = False
        """Whether this process was."""
        self.asked: tuple[torch.Tensor, Any] | None = None
        """The question of the step before: whether any was, and what is waited for."""

    def watch(self) -> None:
        """Take the place of what Lightning does, before it registers its signal handlers."""
        loops, signals = self.trainer.fit_loop.epoch_loop, self.trainer._signal_connector
        loops._broadcast_sigterm_tensor = self.agree  # type: ignore[method-assign]
        signals._sigterm_notifier_fn = self.note  # type: ignore[method-assign]

    def note(self, number: Any, _frame: Any) -> None:
        """Handle the signal: tell the processes that this one started, and outside training steps leave."""
        launcher: Any = self.trainer.strategy.launcher
        if not self.told and launcher is not None:
            launcher.kill(number)
        self.told = True
        if not self.trainer.training:
            self.trainer._signal_connector.received_sigterm = True  # evaluation looks at it after each batch

    def agree(self) -> None:
        """Begin a step; collective.

        Raises:
            SIGTERMException: in all processes, when one was told to end before its step before this one.
        """
        any_told = torch.tensor([int(self.told)])
        work = dist.all_reduce(any_told, dist.ReduceOp.MAX, group=self.hosts, async_op=True)
        before, self.asked = self.asked, (any_told, work)
        if before is None:
            return
        before[1].wait()
        if before[0].item():
            raise SIGTERMException(ENDED)
