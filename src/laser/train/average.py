"""Exponential moving average of all weights, tables and dense, with which a model is evaluated.

Every process averages what it holds of each tensor, in place, so that the sharding does not matter. Averages are
brought up to date every few steps, and exchanged with the live weights for an evaluation. In a checkpoint ``model.*``
are the weights that an evaluation uses, so the averages, and ``training.*`` the live ones that a resumed run needs.

The first updates weigh all weights that they saw alike; the average becomes exponential when it has seen as many as its
memory is long. It therefore never remembers where it began.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor

from laser.train.fused_state import local_tensors
from laser.train.optim import dense_parameters
from laser.train.sharding import sharded_collections
from laser.train.table_storage import Storage

ROWS_AT_A_TIME = 1 << 20
"""Rows exchanged at once, to bound the memory beside the tables."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """Evaluate with an exponential moving average of all weights; costs the memory of a second copy of them.

    Args:
        decay: share of the average that one step leaves, in [0, 1]; 0.999 remembers about 1000 steps, 1 weighs all
            steps since the start alike.
        start_step: step from which weights are averaged; earlier evaluations use the live weights.
        every: steps from one update to the next, which then leaves ``decay ** every``.
    """

    decay: float = 0.999
    start_step: int = 0
    every: int = 8

    def check(self, storage: Storage) -> None:
        """Refuse numbers that cannot be meant, and tables that cannot be averaged in place.

        Raises:
            ValueError: naming the setting.
        """
        if not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"model.average.decay is {self.decay}; expected a number in [0, 1], such as 0.999")
        if self.every < 1:
            raise ValueError(f"model.average.every is {self.every}; expected a number of steps of at least 1")
        for each in storage.used:
            if each.weights != "float32" or each.memory == "uvm_caching":
                raise ValueError(
                    f"model.average needs tables in float32 and not behind a cache, but storage has weights "
                    f"{each.weights} in memory {each.memory}; set these to float32 and device or uvm, or model.average "
                    "to null"
                )

    @property
    def first_step(self) -> int:
        """Step whose weights the average starts with."""
        return max(-(-self.start_step // self.every), 1) * self.every

    def share_left(self, step: int) -> float:
        """What the update after ``step`` leaves of the average."""
        updates = (step - self.first_step) // self.every
        return min(self.decay**self.every, updates / (updates + 1))


class WeightAverage:
    """The averages of a model that is trained.

    Args:
        model: with sharded tables; its weights at this time fill the averages.
        config: how to average.
    """

    def __init__(self, model: nn.Module, config: Average) -> None:
        self.config = config
        self.live = weights(model)
        self.averages = {name: copy_of(tensor) for name, tensor in self.live.items()}
        self.exchanged = False
        """Whether the model holds the averages, and ``averages`` the live weights."""

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        live = [part for tensor in self.live.values() for part in local_tensors(tensor)]
        averages = [part for tensor in self.averages.values() for part in local_tensors(tensor)]
        return [part.detach() for part in live], averages

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps, if they are due."""
        assert not self.exchanged
        if step < self.config.first_step or step % self.config.every:
            return
        live, averages = self._pairs()
        torch._foreach_lerp_(averages, live, 1.0 - self.config.share_left(step))

    @torch.no_grad()
    def exchange(self) -> None:
        """Let the model and this object exchange their weights."""
        for live, average in zip(*self._pairs()):
            for a, b in zip(live.split(ROWS_AT_A_TIME), average.split(ROWS_AT_A_TIME)):
                kept = a.clone()
                a.copy_(b)
                b.copy_(kept)
        self.exchanged = not self.exchanged

    def begin_evaluation(self, step: int) -> None:
        """Put the averages into the model, once there are some after ``step`` steps."""
        if step >= self.config.first_step and not self.exchanged:
            self.exchange()

    def end_evaluation(self) -> None:
        """Put the live weights back."""
        if self.exchanged:
            self.exchange()

    def stored_tensors(self, step: int | None) -> dict[str, Any]:
        """Tensors of a checkpoint after ``step`` steps (``None``: that is to be read), sharing memory with the run."""
        averages, live = (self.live, self.averages) if self.exchanged else (self.averages, self.live)
        evaluated = averages if step is None or step >= self.config.first_step else live
        tensors = {f"model.{name}": tensor for name, tensor in evaluated.items()}
        return tensors | {f"training.{name}": tensor for name, tensor in live.items()}


def weights(model: nn.Module) -> dict[str, Any]:
    """Every weight by its name in ``model.state_dict()``: dense parameters, and sharded tensors of the tables."""
    tables = {f"{prefix}.{name}" for prefix, c in sharded_collections(model) for name in c.state_dict()}
    names = tables | dense_parameters(model).keys()
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def copy_of(tensor: Any) -> Any:
    """A copy with memory of its own, sharded as the original is."""
    if not hasattr(tensor, "local_shards"):
        return tensor.detach().clone()
    shards = [Shard(shard.tensor.detach().clone(), shard.metadata) for shard in tensor.local_shards()]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        shards, sharded_tensor_metadata=tensor.metadata(), process_group=tensor._process_group
    )
