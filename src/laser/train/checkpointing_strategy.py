"""A strategy whose checkpoints are directories of sharded tensors (``laser.train.checkpoint``)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch.optim import Optimizer

from laser.train import checkpoint as checkpoints
from laser.train.loggers import write_rows
from laser.train.loop_state import move_to_validation, validation_is_due
from laser.train.optim import SparseDenseOptimizer
from laser.train.random_state import random_states, restore_random_state
from laser.train.sharding import forget_cached_rows
from laser.train.watchful_strategy import WatchfulStrategy


class CheckpointingStrategy(WatchfulStrategy):
    """Writes and reads every tensor from where it is; the rest of the run's state goes with it."""

    saving_seconds = 0.0
    """How long training stood still for checkpoints."""

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
        """End the thread that writes in the background."""
        if self.saver is not None:
            self.saver.end()
            self.saver = None
        super().teardown()
