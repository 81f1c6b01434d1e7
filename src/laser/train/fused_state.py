"""State of the optimizers that are fused into the tables' backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from laser.train.optim import TableOptimizer
from laser.versions import check_triple

check_triple()

from torchrec.optim.keyed import KeyedOptimizer  # noqa: E402


def fused_state(optimizer: KeyedOptimizer) -> Mapping[str, Mapping[str, Any]]:
    """Sharded state tensors of a fused optimizer by parameter and state name, sharing memory with it."""
    return optimizer.state_dict()["state"]  # type: ignore[return-value]


def local_tensors(value: Any) -> list[Tensor]:
    """Parts of a plain or sharded tensor that this process holds."""
    return [shard.tensor for shard in value.local_shards()] if hasattr(value, "local_shards") else [value]


@torch.no_grad()
def fill_accumulators(optimizer: KeyedOptimizer, config: TableOptimizer) -> None:
    """Set Adagrad's accumulators to their starting value, which FBGEMM has no argument for."""
    if config.name not in ("adagrad", "rowwise_adagrad"):
        return
    for states in fused_state(optimizer).values():
        for name, state in states.items():
            if name.endswith("momentum1"):
                for tensor in local_tensors(state):
                    tensor.fill_(config.initial_accumulator)
