"""A DDP strategy that finds out which process was lost, and says so once."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.constants import default_pg_timeout

from laser.train.background_saving import BackgroundSaver
from laser.train.failures import Heartbeat, PatientLauncher, ProcessLost, say_lost, tells_of_a_loss
from laser.train.rendezvous import store_of_this_start, store_outlives_processes

if TYPE_CHECKING:
    from laser.train.module import CTRModule

FAREWELL_SECONDS = 60.0
"""How long a run that ends with an error waits for a checkpoint that is being written."""


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
            self.heartbeat = Heartbeat(self.global_rank, self.world_size, lambda: self.module.trainer.global_step)

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
        self._launcher = PatientLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

    def on_exception(self, exception: BaseException) -> None:
        """Say which other process was lost, if that is what the error comes from, and end those that hang.

        Raises:
            ProcessLost: in that case.
        """
        super().on_exception(exception)
        if not tells_of_a_loss(exception) and self.saver is not None:
            with suppress(Exception):  # the error that ends the run is the one to report
                self.saver.wait(FAREWELL_SECONDS)
        if self.world_size == 1:
            return
        if not tells_of_a_loss(exception):
            if self.heartbeat is not None and isinstance(exception, Exception):
                self.heartbeat.fall_silent()
            return
        say_lost(self.heartbeat, self.world_size)
        for logger in self.module.trainer.loggers:
            logger.finalize("failed")
        if isinstance(self.launcher, PatientLauncher):
            self.launcher.kill(signal.SIGKILL)
        raise ProcessLost from exception

    def teardown(self) -> None:
        """Stop saying that this process lives."""
        if self.heartbeat is not None:
            self.heartbeat.end()
            self.heartbeat = None
        super().teardown()
