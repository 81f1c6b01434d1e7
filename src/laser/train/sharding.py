"""Where the rows of each embedding table live: a typed configuration, and TorchRec's plan for it.

Combinations that would crash later, hang another process or silently train a different model are refused by name
before anything is built (docs/decisions/002-sharding.md).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from laser.train.optim import TableOptimizer
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

ShardingType = Literal["row_wise", "table_wise", "column_wise"]
FUSED = EmbeddingComputeKernel.FUSED.value
"""Kernels that update rows in their backward pass; the dense ones would leave tables to Adam, and pool on the CPU."""
COLUMN_MULTIPLE = 4
"""FBGEMM's kernels want embedding rows of whole 16-byte groups of float32."""


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How embedding tables are spread over processes.

    Args:
        default: sharding of every table that ``tables`` does not name. ``row_wise`` spreads the rows evenly;
            ``table_wise`` gives whole tables to processes, the largest first; ``column_wise`` cuts every row.
        tables: sharding of single tables, by table name.
    """

    default: ShardingType = "row_wise"
    tables: dict[str, ShardingType] = field(default_factory=dict)

    def of(self, table: str) -> ShardingType:
        """Sharding of one table."""
        return self.tables.get(table, self.default)

    @property
    def used(self) -> set[str]:
        """All sharding types that occur."""
        return {self.default, *self.tables.values()}


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
    collection: EmbeddingCollection, sharding: Sharding, sharder: Any, device_type: str
) -> EmbeddingModuleShardingPlan:
    """TorchRec's plan for one collection over the default process group.

    Raises:
        ValueError: when a table's width cannot be cut into equal columns of whole 16-byte groups.
    """
    world_size = dist.get_world_size()
    configs = sorted(collection.embedding_configs(), key=lambda config: (-config.num_embeddings, config.name))
    per_table: dict[str, ParameterShardingGenerator] = {}
    whole = 0
    for config in configs:
        match sharding.of(config.name):
            case "row_wise":
                per_table[config.name] = row_wise(compute_kernel=FUSED)
            case "table_wise":
                per_table[config.name] = table_wise(rank=whole % world_size, compute_kernel=FUSED)
                whole += 1
            case "column_wise":
                if config.embedding_dim % (COLUMN_MULTIPLE * world_size):
                    raise ValueError(
                        f"table {config.name!r} of width {config.embedding_dim} cannot be cut column_wise over "
                        f"{world_size} processes; its width must be a multiple of {COLUMN_MULTIPLE * world_size}"
                    )
                per_table[config.name] = column_wise(ranks=list(range(world_size)), compute_kernel=FUSED)
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
    """
    sharder: Any = EmbeddingCollectionSharder(fused_params=optimizer.fused_params())
    group = dist.group.WORLD
    assert group is not None
    environment = ShardingEnv.from_process_group(group)
    for name, collection in embedding_collections(model):
        plan = module_plan(collection, sharding, sharder, device.type)
        sharded = sharder.shard(collection, plan, environment, device)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, sharded)
