"""TorchRec's plan for where the rows of each embedding table live, and the collections that follow it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from laser.train.optim import RowGradientClip, TableOptimizer
from laser.train.placement import Placement, Sharding, TableSize, place
from laser.train.replicated_tables import ReplicatedLookup
from laser.train.table_collection import TableSharder
from laser.train.table_storage import KERNELS, WEIGHTS, Storage, check_table_names
from laser.versions import check_triple

check_triple()

from torchrec.distributed.embedding import ShardedEmbeddingCollection  # noqa: E402
from torchrec.distributed.sharding_plan import (  # noqa: E402
    ParameterShardingGenerator,
    column_wise,
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_row_wise,
    table_wise,
)
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingEnv  # noqa: E402
from torchrec.modules.embedding_modules import EmbeddingCollection  # noqa: E402


def module_plan(
    collection: EmbeddingCollection,
    placements: Mapping[str, Placement],
    sharder: Any,
    device_type: str,
    storage: Storage = Storage(),  # noqa: B008
) -> EmbeddingModuleShardingPlan:
    """TorchRec's plan for one collection over the default process group."""
    local_size = _local_size()
    generators: dict[str, Callable[[tuple[int, ...], str], ParameterShardingGenerator]] = {
        "row_wise": lambda _ranks, kernel: row_wise(compute_kernel=kernel),
        "table_wise": lambda ranks, kernel: table_wise(rank=ranks[0], compute_kernel=kernel),
        "column_wise": lambda ranks, kernel: column_wise(ranks=list(ranks), compute_kernel=kernel),
        "table_row_wise": lambda ranks, kernel: _host_rows(ranks[0] // local_size, kernel),
        "data_parallel": lambda _ranks, _kernel: data_parallel(),
    }
    names = [config.name for config in collection.embedding_configs()]
    per_table = {
        name: generators[placements[name].kind](placements[name].ranks, KERNELS[storage.of(name).memory])
        for name in names
    }
    world_size = dist.get_world_size()
    return construct_module_sharding_plan(
        collection, per_table, sharder=sharder, local_size=local_size, world_size=world_size, device_type=device_type
    )


def _local_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))


def _host_rows(host: int, kernel: str) -> ParameterShardingGenerator:
    """As TorchRec's generator, which takes no kernel."""
    generate = table_row_wise(host_index=host)

    def with_kernel(*arguments: Any) -> Any:
        found = generate(*arguments)
        found.compute_kernel = kernel
        return found

    return with_kernel


def embedding_collections(model: nn.Module) -> list[tuple[str, EmbeddingCollection]]:
    """Collections that are not sharded yet, by qualified name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, EmbeddingCollection)]


def sharded_collections(model: nn.Module) -> list[tuple[str, ShardedEmbeddingCollection]]:
    """Collections that are sharded, by qualified name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ShardedEmbeddingCollection)]


def shard_collections(
    model: nn.Module,
    sharding: Sharding,
    optimizer: TableOptimizer,
    device: torch.device,
    storage: Storage = Storage(),  # noqa: B008
    rows: Mapping[str, int] | None = None,
    timeout: timedelta | None = None,
) -> None:
    """Replace every EmbeddingCollection in ``model`` by its sharded version with a fused optimizer, rows unset.

    Does nothing when all are sharded already, as when a model is evaluated after training.

    Args:
        model: on the "meta" device as far as its tables go; changed in place.
        sharding: of the tables.
        optimizer: of the tables; fused into their backward pass.
        device: of this process.
        storage: of the tables.
        rows: of tables that have another number of rows than their feature has ids.
        timeout: how long a process waits for another.

    Raises:
        ValueError: as ``laser.train.placement.place``, or when ``storage`` or ``rows`` names a table that there is not.
    """
    if not embedding_collections(model):
        return
    sharder: Any = TableSharder(hosts_group(device, timeout), optimizer.fused_params() | storage.fused_params())
    group = dist.group.WORLD
    assert group is not None
    environment = ShardingEnv.from_process_group(group)
    collections = [(name, _resized(collection, rows or {})) for name, collection in embedding_collections(model)]
    configs = [config for _, collection in collections for config in collection.embedding_configs()]
    sizes = [TableSize(config.name, config.num_embeddings, config.embedding_dim) for config in configs]
    placements = place(sizes, sharding, dist.get_world_size(), _local_size()) if sizes else {}
    if sizes:
        check_table_names("storage.tables", storage.tables, [size.name for size in sizes])
        check_table_names("managed_ids", rows or {}, [size.name for size in sizes])
    for config in configs:
        config.data_type = WEIGHTS[storage.of(config.name).weights]
    for name, collection in collections:
        plan = module_plan(collection, placements, sharder, device.type, storage)
        sharded = sharder.shard(collection, plan, environment, device)
        for kernel in fused_kernels(sharded):
            if kernel.use_cpu and not kernel.weights_host.numel():
                # Without any, as where small tables are cut for many processes, FBGEMM looks for rows on a GPU.
                kernel.weights_host = nn.Parameter(torch.zeros(kernel.max_D))
        if optimizer.max_row_gradient is not None:
            sharded.register_forward_hook(RowGradientClip(optimizer.max_row_gradient, dist.get_world_size()))
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, sharded)


def hosts_group(device: torch.device, timeout: timedelta | None) -> dist.ProcessGroup | None:
    """The processes, to exchange what is in host memory; ``None``: the common group does so. Collective."""
    if device.type == "cpu" or dist.get_world_size() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=timeout)  # type: ignore[return-value]


def _resized(collection: EmbeddingCollection, rows: Mapping[str, int]) -> EmbeddingCollection:
    configs = collection.embedding_configs()
    if not any(config.name in rows for config in configs):
        return collection
    changed = [replace(config, num_embeddings=rows.get(config.name, config.num_embeddings)) for config in configs]
    return EmbeddingCollection(tables=changed, device=torch.device("meta"))


def fused_kernels(collection: ShardedEmbeddingCollection) -> list[Any]:
    """FBGEMM's table-batched embeddings of a collection; it holds them in plain lists, where ``modules`` finds none."""
    lookups: Any = collection._lookups
    return [group._emb_module for lookup in lookups for group in lookup._emb_modules]


def replicated_tables(collection: ShardedEmbeddingCollection) -> list[ReplicatedLookup]:
    """Tables of a collection that are whole on every process, to be updated at the end of a step."""
    return [lookup for lookup in collection._lookups if isinstance(lookup, ReplicatedLookup)]


def forget_cached_rows(model: nn.Module) -> None:
    """Empty the GPU's caches of rows that lie in host memory, whose values were replaced there."""
    for _, collection in sharded_collections(model):
        for kernel in fused_kernels(collection):
            if kernel.lxu_cache_weights.numel():
                kernel.reset_cache_states()
