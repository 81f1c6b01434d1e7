"""TorchRec's plan for where the rows of each embedding table live, and the collections that follow it.

Combinations that would crash later, hang another process or silently train a different model are refused by name
before anything is built (docs/decisions/002-sharding.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from laser.train.optim import TableOptimizer
from laser.train.placement import Placement, Sharding, TableSize, place
from laser.versions import check_triple

check_triple()

from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection  # noqa: E402
from torchrec.distributed.embedding_types import EmbeddingComputeKernel  # noqa: E402
from torchrec.distributed.sharding_plan import (  # noqa: E402
    ParameterShardingGenerator,
    column_wise,
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingEnv  # noqa: E402
from torchrec.modules.embedding_modules import EmbeddingCollection  # noqa: E402

FUSED = EmbeddingComputeKernel.FUSED.value
"""Kernels that update rows in their backward pass; the dense ones would leave tables to Adam, and pool on the CPU."""


def check_combination(
    sharding: Sharding, optimizer: TableOptimizer, device: torch.device, precision: str, accumulate: int
) -> None:
    """Refuse what does not work together.

    Args:
        sharding: of the tables.
        optimizer: of the tables.
        device: of this process.
        precision: Lightning's name, such as "bf16-mixed".
        accumulate: value of ``trainer.accumulate_grad_batches``.

    Raises:
        ValueError: one sentence that names both sides and what to set instead.
    """
    if "column_wise" in sharding.used and optimizer.name == "rowwise_adagrad":
        raise ValueError(
            "column_wise sharding with rowwise_adagrad keeps one accumulator per column shard, so results would "
            "depend on the number of processes; set model.table_optimizer.name to adagrad or the sharding to row_wise"
        )
    if optimizer.name == "adam" and device.type == "cpu":
        raise ValueError(
            "embedding tables on the CPU cannot be trained with adam; set model.table_optimizer.name to adagrad, "
            "rowwise_adagrad or sgd"
        )
    if precision not in ("32-true", "bf16-mixed"):
        raise ValueError(
            f"trainer.precision is {precision}, but tables keep float32 rows that are updated while gradients are "
            "computed; set it to 32-true or bf16-mixed"
        )
    if accumulate != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches is {accumulate}, but tables are updated on every batch, which "
            "accumulation would not change; set it to 1 and raise data.batch_size instead"
        )


def module_plan(
    collection: EmbeddingCollection, placements: Mapping[str, Placement], sharder: Any, device_type: str
) -> EmbeddingModuleShardingPlan:
    """TorchRec's plan for one collection over the default process group."""
    generators: dict[str, Callable[[tuple[int, ...]], ParameterShardingGenerator]] = {
        "row_wise": lambda _ranks: row_wise(compute_kernel=FUSED),
        "table_wise": lambda ranks: table_wise(rank=ranks[0], compute_kernel=FUSED),
        "column_wise": lambda ranks: column_wise(ranks=list(ranks), compute_kernel=FUSED),
    }
    names = [config.name for config in collection.embedding_configs()]
    per_table = {name: generators[placements[name].kind](placements[name].ranks) for name in names}
    world_size = dist.get_world_size()
    return construct_module_sharding_plan(
        collection, per_table, sharder=sharder, local_size=_local_size(), world_size=world_size, device_type=device_type
    )


def _local_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))


def embedding_collections(model: nn.Module) -> list[tuple[str, EmbeddingCollection]]:
    """Collections that are not sharded yet, by qualified name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, EmbeddingCollection)]


def sharded_collections(model: nn.Module) -> list[tuple[str, ShardedEmbeddingCollection]]:
    """Collections that are sharded, by qualified name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ShardedEmbeddingCollection)]


def shard_collections(model: nn.Module, sharding: Sharding, optimizer: TableOptimizer, device: torch.device) -> None:
    """Replace every EmbeddingCollection in ``model`` by its sharded version with a fused optimizer, rows unset.

    Does nothing when all are sharded already, as when a model is evaluated after training.

    Args:
        model: on the "meta" device as far as its tables go; changed in place.
        sharding: of the tables.
        optimizer: of the tables; fused into their backward pass.
        device: of this process.

    Raises:
        ValueError: as ``laser.train.placement.place``.
    """
    sharder: Any = EmbeddingCollectionSharder(fused_params=optimizer.fused_params())
    group = dist.group.WORLD
    assert group is not None
    environment = ShardingEnv.from_process_group(group)
    collections = embedding_collections(model)
    configs = [config for _, collection in collections for config in collection.embedding_configs()]
    sizes = [TableSize(config.name, config.num_embeddings, config.embedding_dim) for config in configs]
    placements = place(sizes, sharding, dist.get_world_size()) if sizes else {}
    for name, collection in collections:
        plan = module_plan(collection, placements, sharder, device.type)
        sharded = sharder.shard(collection, plan, environment, device)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, sharded)
