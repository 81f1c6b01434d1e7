"""The last place that knows of other processes: shards the tables, averages the gradients of the dense part.

``TorchRecStrategy`` is used in every run; one process is its degree-1 case, with a process group of one.

Order within ``Trainer.fit``: ``setup_environment`` (refuse bad combinations, start the process group) -> the module's
``configure_model`` (tables on "meta") -> ``setup`` (shard, fill rows, build the optimizer) -> checkpoint.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import CheckpointIO, ClusterEnvironment, Precision
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn.parallel import DistributedDataParallel

from laser.train.background_saving import BackgroundSaver, check_links
from laser.train.callbacks import write_json
from laser.train.checkpointing_strategy import CheckpointingStrategy
from laser.train.ending import Ending
from laser.train.failures import PatientLauncher
from laser.train.fused_state import fill_accumulators
from laser.train.gradients import average_gradients, same_everywhere
from laser.train.managed_ids import ManagedIds, check_managed, manage_ids
from laser.train.optim import dense_parameters
from laser.train.placement import Sharding
from laser.train.refusals import check_combination
from laser.train.sharding import embedding_collections, hosts_group, shard_collections, sharded_collections
from laser.train.table_rows import fill_rows
from laser.train.table_storage import Storage
from laser.train.warm_start import load_weights

if TYPE_CHECKING:
    import lightning.pytorch as pl

META = torch.device("meta")


class TorchRecStrategy(CheckpointingStrategy):
    """Sharded embedding tables and data-parallel dense parameters, for one process or many, on CPU or GPU.

    Args:
        sharding: how tables are spread over the processes.
        storage: number format and memory of the tables.
        managed_ids: tables that hand out their rows to ids as they come, by name of the table.
        save_in_background: write checkpoints while training goes on; each process needs host memory for a copy of what
            it saves.
        timeout_seconds: how long a process waits for another in a collective before it fails.
        accelerator: set by the trainer.
        parallel_devices: set by the trainer.
        cluster_environment: set by the trainer.
        checkpoint_io: only its removal of old checkpoints is used.
        precision_plugin: set by the trainer.
        process_group_backend: ``None`` takes gloo on the CPU and nccl on GPUs.
    """

    def __init__(
        self,
        sharding: Sharding | None = None,
        storage: Storage = Storage(),  # noqa: B008
        managed_ids: dict[str, ManagedIds] | None = None,
        save_in_background: bool = False,
        timeout_seconds: float = 1800.0,
        accelerator: pl.accelerators.Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout_seconds),
        )
        self.sharding = sharding or Sharding()
        self.storage = storage
        self.managed_ids = managed_ids or {}
        self.save_in_background = save_in_background

    def setup_environment(self) -> None:
        """Refuse combinations that cannot work, then start the process group (of one, too)."""
        check_combination(
            self.sharding,
            self.module.table_optimizer,
            self.storage,
            self.root_device,
            str(self.precision_plugin.precision),
            self.module.trainer.accumulate_grad_batches,
        )
        for name, managed in self.managed_ids.items():
            check_managed(name, managed, self.storage, self.sharding)
        if self.root_device.type == "cuda" and "OMP_NUM_THREADS" not in os.environ:
            # The host only feeds the GPU. To wake a thread a core for the copy of half a megabyte has taken 8 ms.
            torch.set_num_threads(1)
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        """Shard and fill the tables, then set up the rest."""
        new = bool(embedding_collections(self.module))  # not a model that was just trained
        self._shard_tables()
        if new and self.module.warm_start is not None and trainer.ckpt_path is None:
            outcome = load_weights(self.module, self.module.warm_start)
            if self.global_rank == 0:
                print(f"laser: weights of {self.module.warm_start.checkpoint}: {outcome}")
                write_json(Path(trainer.default_root_dir) / "warm_start.json", asdict(outcome))
        if self.save_in_background and trainer.state.fn == TrainerFn.FITTING:
            check_links(trainer)
            group: Any = dist.new_group(backend="gloo")
            self.saver = BackgroundSaver(group)
        if self.world_size > 1:
            Ending(trainer, hosts_group(self.root_device, self._timeout)).watch()
        if isinstance(self.launcher, PatientLauncher):
            self.launcher.leave_signals()  # Lightning registers its own now
        super().setup(trainer)

    @torch.no_grad()
    def _shard_tables(self) -> None:
        # TorchRec asks for the processes of this host where its plans count nodes; only torchrun sets it.
        os.environ["LOCAL_WORLD_SIZE"] = str(self.num_processes)
        module = self.module
        known = {name for name, _ in sharded_collections(module)}
        rows = {name: managed.rows for name, managed in self.managed_ids.items()}
        optimizer, device = module.table_optimizer, self.root_device
        shard_collections(module, self.sharding, optimizer, device, self.storage, rows, self._timeout)
        if self.managed_ids and not known:
            module.managed_ids = manage_ids(module, self.managed_ids, module.initial_rows, optimizer, device)
        for name, collection in sharded_collections(module):
            if name in known:
                continue
            fill_accumulators(collection.fused_optimizer, module.table_optimizer)
            for key, weight in collection.state_dict().items():
                fill_rows(weight, key.split(".")[1], module.initial_rows)
        # What Lightning must not broadcast: shards differ from process to process; maps of ids are the same.
        ignored = [f"{prefix}.{name}" for prefix, c in sharded_collections(module) for name, _ in c.named_parameters()]
        ignored += [f"managed_ids.{name}" for name, _ in module.managed_ids.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)

    def configure_ddp(self) -> None:
        """Not wrapped: dense parameters begin alike, and ``post_backward`` averages their gradients."""
        self.dense = list(dense_parameters(self.module).values())
        same_everywhere(self.dense)

    def post_backward(self, closure_loss: torch.Tensor) -> None:
        """Average the gradients of the dense parameters; those of the tables were used up in the backward pass."""
        average_gradients(self.dense, self.module.flat_gradients())

    def teardown(self) -> None:
        """Let go of a model that was never filled, so that the error which left it so is the one reported."""
        if self._lightning_module is not None and any(p.device == META for p in self._lightning_module.parameters()):
            self._lightning_module = None
        super().teardown()


StrategyRegistry.register(
    "torchrec", TorchRecStrategy, description="Sharded embedding tables, data-parallel dense parameters", override=True
)
