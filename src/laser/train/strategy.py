"""The last place that knows of other processes: shards the tables, averages the gradients of the dense part.

``TorchRecStrategy`` is used in every run; one process is its degree-1 case, with a process group of one.

Order within ``Trainer.fit``: ``setup_environment`` (refuse bad combinations, start the process group) -> the module's
``configure_model`` (tables on "meta") -> ``setup`` (shard, fill rows, build the optimizer) -> checkpoint.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import CheckpointIO, ClusterEnvironment, Precision
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from laser.train import checkpoint as checkpoints
from laser.train.background_saving import BackgroundSaver, check_links
from laser.train.callbacks import write_json
from laser.train.failures import Heartbeat, PatientLauncher, ProcessLost, say_lost, tells_of_a_loss
from laser.train.gradients import average_gradients, same_everywhere
from laser.train.loggers import write_rows
from laser.train.loop_state import move_to_validation, validation_is_due
from laser.train.managed_ids import ManagedIds, check_managed, manage_ids
from laser.train.optim import SparseDenseOptimizer, dense_parameters, fill_accumulators
from laser.train.placement import Sharding
from laser.train.random_state import random_states, restore_random_state
from laser.train.refusals import check_combination
from laser.train.rendezvous import store_of_this_start, store_outlives_processes
from laser.train.sharding import (
    embedding_collections,
    forget_cached_rows,
    shard_collections,
    sharded_collections,
)
from laser.train.table_rows import fill_rows
from laser.train.table_storage import Storage
from laser.train.warm_start import load_weights

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from laser.train.module import CTRModule

META = torch.device("meta")
FAREWELL_SECONDS = 60.0
"""How long a run that ends with an error waits for a checkpoint that is being written."""


class TorchRecStrategy(DDPStrategy):
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
        self.saver: BackgroundSaver | None = None
        self.saving_seconds = 0.0
        """How long training stood still for checkpoints."""
        self.heartbeat: Heartbeat | None = None

    @property
    def module(self) -> CTRModule:
        """The LightningModule being run."""
        assert self.lightning_module is not None
        return self.lightning_module  # type: ignore[return-value]

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
        if self.world_size > 1:
            self.heartbeat = Heartbeat(self.global_rank, self.world_size, lambda: self.module.trainer.global_step)

    def setup_distributed(self) -> None:
        """Start the process group on a store of its own where torchrun's may hold what dead processes wrote."""
        if store_outlives_processes() and not dist.is_initialized():
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
        super().setup(trainer)

    @torch.no_grad()
    def _shard_tables(self) -> None:
        # TorchRec asks for the processes of this host where its plans count nodes; only torchrun sets it.
        os.environ["LOCAL_WORLD_SIZE"] = str(self.num_processes)
        module = self.module
        known = {name for name, _ in sharded_collections(module)}
        rows = {name: managed.rows for name, managed in self.managed_ids.items()}
        optimizer, device = module.table_optimizer, self.root_device
        shard_collections(module, self.sharding, optimizer, device, self.storage, rows)
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
        same_everywhere(dense_parameters(self.module).values())

    def post_backward(self, closure_loss: torch.Tensor) -> None:
        """Average the gradients of the dense parameters; those of the tables were used up in the backward pass."""
        average_gradients(dense_parameters(self.module).values())

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Shards must exist before a checkpoint is read into them."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Empty: ``save_checkpoint`` writes tensors from where they are, every process its own shards."""
        return {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing to do: ``load_checkpoint`` has filled the tensors in place."""

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Hyper-parameters of the groups; state tensors are written by ``save_checkpoint``."""
        inner = getattr(optimizer, "_optimizer", optimizer)
        assert isinstance(inner, SparseDenseOptimizer)
        return {"groups": inner.hyper_parameters()}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the hyper-parameters, so that the first resumed step has the learning rate it would have had."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            assert isinstance(optimizer, SparseDenseOptimizer)
            optimizer.load_hyper_parameters(state["groups"])
            optimizer.steps = checkpoint["global_step"]

    def _tensors(self, step: int | None) -> dict[str, Any]:
        """Tensors to write after ``step`` steps, or to read into (``None``)."""
        optimizer = self.optimizers[0] if self.optimizers else None
        assert optimizer is None or isinstance(optimizer, SparseDenseOptimizer)
        tensors = checkpoints.live_tensors(self.module, optimizer)
        average = self.module.weight_average
        return tensors if average is None else tensors | average.stored_tensors(step)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint directory; collective."""
        began = time.perf_counter()
        trainer = self.module.trainer
        write_rows(trainer)
        checkpoint["random"] = random_states()
        maps: Any = self.module.managed_ids
        checkpoint["managed_ids"] = {name: known.state() for name, known in maps.items()}
        if validation_is_due(trainer):
            move_to_validation(checkpoint["loops"])
        facts = self.module.checkpoint_facts()
        if self.saver is not None and trainer.state.status == TrainerStatus.RUNNING:
            key = (trainer.global_step, trainer.state.stage, checkpoints.packed(checkpoint.get("loops", {})))
            self.saver.save(filepath, partial(self._tensors, facts["step"]), checkpoint, facts, key)
        else:
            checkpoints.save(filepath, self._tensors(facts["step"]), checkpoint, facts)
        self.saving_seconds += time.perf_counter() - began

    def remove_checkpoint(self, filepath: str | Any) -> None:
        """Remove an old checkpoint, when those that replace it are written."""
        if self.saver is not None:
            self.saver.remove(partial(super().remove_checkpoint, filepath))
        else:
            super().remove_checkpoint(filepath)

    def on_train_end(self) -> None:
        """Wait for checkpoints that are being written.

        Raises:
            ValueError: when one could not be written.
        """
        super().on_train_end()
        if self.saver is not None:
            began = time.perf_counter()
            self.saver.wait()
            self.saving_seconds += time.perf_counter() - began

    def load_checkpoint(self, checkpoint_path: str | Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint directory into the live tensors and return its metadata; collective."""
        fitting = self.module.trainer.state.fn == TrainerFn.FITTING
        if not fitting:
            self.module.weight_average = None  # the checkpoint's weights are what is evaluated
        facts = self.module.checkpoint_facts()
        checkpoint = checkpoints.load(checkpoint_path, self._tensors(None), facts, training=fitting)
        forget_cached_rows(self.module)
        if fitting:
            restore_random_state(checkpoint["random"])
            maps: Any = self.module.managed_ids
            for name, known in maps.items():
                known.load_state(checkpoint["managed_ids"][name])
        return checkpoint

    def teardown(self) -> None:
        """Let go of a model that was never filled, so that the error which left it so is the one reported."""
        if self._lightning_module is not None and any(p.device == META for p in self._lightning_module.parameters()):
            self._lightning_module = None
        if self.saver is not None:
            self.saver.end()
            self.saver = None
        if self.heartbeat is not None:
            self.heartbeat.end()
            self.heartbeat = None
        super().teardown()


StrategyRegistry.register(
    "torchrec", TorchRecStrategy, description="Sharded embedding tables, data-parallel dense parameters", override=True
)
