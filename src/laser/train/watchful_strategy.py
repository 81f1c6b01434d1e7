"""A DDP strategy that finds out which process was lost, and says so once."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.constants import default_pg_timeout

from laser.train.background_saving import BackgroundSaver
from laser.train.failures import PatientLauncher, ProcessLost, tells_of_a_loss
from laser.train.heartbeat import Heartbeat
from laser.train.rendezvous import store_of_this_start, store_outlives_processes

if TYPE_CHECKING:
    from laser.train.module import CTRModule

FAREWELL_SECONDS = 60.0
"""How long a run that ends with an error waits for a checkpoint that is being written."""
LONGEST_SILENCE = 60.0
"""Seconds. While kernels compile, a process may keep the interpreter from its other threads for some."""


class WatchfulStrategy(DDPStrategy):
    """Process group, launcher and what happens when another process no longer takes part."""

    saver: BackgroundSaver | None = None
    heartbeat: Heartbeat | None = None

    @property
    def module(self) -> CTRModule:
        """The LightningModule being run."""
        assert self.lightning_module is not None
        return self.lightning_module  # type: ignore[return-value]

    def setup_environment(self) -> None:
        """Start the process group (of one, too), and let the others know that this process lives."""
        super().setup_environment()
        if self.world_size > 1:
            timeout = self._timeout or default_pg_timeout
            self.heartbeat = Heartbeat(
                self.global_rank,
                self.world_size,
                self._steps_done,
                # NCCL ends the process after the whole of it.
                silence_seconds=min(LONGEST_SILENCE, 0.75 * timeout.total_seconds()),
                finalize=self._finalize_loggers,
                kill=self._kill_launched,
            )

    def setup_distributed(self) -> None:
        """Start the process group on a store of its own where it can, and must.

        A single process needs no port, for which many runs on one host would compete. Under torchrun the common store
        may hold what dead processes wrote.
        """
        if not dist.is_initialized() and (self.world_size == 1 or store_outlives_processes()):
            self.set_world_ranks()
            store = store_of_this_start(self.global_rank, self.world_size, self._timeout or default_pg_timeout)
            dist.init_process_group(
                self._get_process_group_backend(),
                store=store,
                rank=self.global_rank,
                world_size=self.world_size,
                timeout=self._timeout,
                device_id=None if self.root_device.type == "cpu" else self.root_device,
            )
        super().setup_distributed()

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = PatientLauncher(
            self._leave_if_lost, self.cluster_environment, self.num_processes, self.num_nodes
        )

    def _steps_done(self) -> int:
        trainer = getattr(self._lightning_module, "_trainer", None)  # None while a run that failed is taken apart
        return 0 if trainer is None else trainer.global_step

    def _leave_if_lost(self) -> None:
        if self.heartbeat is not None:
            self.heartbeat.leave_if_lost()

    def _finalize_loggers(self) -> None:
        for logger in self.module.trainer.loggers:
            logger.finalize("failed")

    def _kill_launched(self) -> None:
        if isinstance(self.launcher, PatientLauncher):
            self.launcher.kill(signal.SIGKILL)

    def on_exception(self, exception: BaseException) -> None:
        """Say which other process was lost, if that is what the error comes from, and end those that hang.

        Raises:
            ProcessLost: in that case.
        """
        if self.heartbeat is not None:
            self.heartbeat.main_reports.set()
        super().on_exception(exception)
        if not tells_of_a_loss(exception) and self.saver is not None:
            with suppress(Exception):  # the error that ends the run is the one to report
                self.saver.wait(FAREWELL_SECONDS)
        if self.world_size == 1:
            return
        if not tells_of_a_loss(exception):
            if self.heartbeat is not None and isinstance(exception, Exception):
                self.heartbeat.fall_silent()
            elif self.heartbeat is not None:  # it was told to end, perhaps alone
                self.heartbeat.stop()
                self.heartbeat = None
            return
        if self.heartbeat is not None:
            self.heartbeat.say_lost()
            self.heartbeat.end()
        else:
            sentence = f"not all of the {self.world_size} processes started in time; see what the others say"
            print(f"laser: {sentence}", file=sys.stderr, flush=True)
        self._finalize_loggers()
        self._kill_launched()
        raise ProcessLost from exception

    def teardown(self) -> None:
        """Stop saying that this process lives."""
        if self.heartbeat is not None:
            self.heartbeat.end()
            self.heartbeat = None
        super().teardown()
