"""Rows for ids as they come: TorchRec's managed collision (zero-collision hashing), the same for any processes.

A managed table has fewer rows than its feature has ids. Every id that has a row has it for itself; all others share the
last row. After every ``interval`` training steps the ids that occurred in at least ``admit_after`` of them compete with
those that have rows, by TorchRec's eviction policy; a row that changes hands starts again from its initial values.

TorchRec shards this map by ranges of ids, so that what is evicted depends on the number of processes, and its eviction
has no CPU kernel. Here every process holds the whole map (24 to 32 bytes a row) and makes the same changes: ids of the
interval are exchanged once, each counted once a step. So any sharding, any number of processes and resuming agree.

Legend of shape suffixes: N ids; P pairs of id and step; R rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from laser.train.optim import TableOptimizer
from laser.train.placement import Sharding
from laser.train.sharding import sharded_collections
from laser.train.table_rows import InitialRows, reset_rows
from laser.train.table_storage import Storage
from laser.versions import check_triple

check_triple()

from torchrec.modules.mc_modules import (  # noqa: E402
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor  # noqa: E402

POLICIES = {"lfu": LFU_EvictionPolicy, "lru": LRU_EvictionPolicy, "distance_lfu": DistanceLFU_EvictionPolicy}


@dataclass(frozen=True, kw_only=True)
class ManagedIds:
    """How a table hands out its rows.

    Args:
        rows: of the table; the last is for all ids without a row.
        interval: training steps between changes.
        admit_after: steps of an interval in which an id must occur to compete for a row.
        evict: ``lfu`` evicts the ids with the fewest steps, ``lru`` those unseen for longest, ``distance_lfu`` weighs
            steps by how long ago the id was seen.
    """

    rows: int
    interval: int = 100
    admit_after: int = 1
    evict: Literal["lfu", "lru", "distance_lfu"] = "distance_lfu"

    def __post_init__(self) -> None:
        if self.rows < 2 or self.interval < 1 or self.admit_after < 1:
            raise ValueError(f"{self} cannot work; give at least 2 rows, and an interval and admit_after of at least 1")
        if self.admit_after > self.interval:
            raise ValueError(
                f"managed_ids.admit_after is {self.admit_after}, but an interval has {self.interval} steps, so that no "
                "id would ever get a row; set it lower"
            )


class IdMap(nn.Module):
    """Ids of one table and their rows; buffers are the same on every process.

    Args:
        config: of the table.
        device: of this process.
    """

    def __init__(self, config: ManagedIds, device: torch.device) -> None:
        super().__init__()
        self.config = config

        def frequent(counts_N: Tensor) -> tuple[Tensor, float]:
            return counts_N >= config.admit_after, config.admit_after

        policy = POLICIES[config.evict](threshold_filtering_func=frequent)
        self.map = MCHManagedCollisionModule(config.rows, device, policy, eviction_interval=1)
        self.seen: list[Tensor] = []
        """Pairs [P, 2] of id and step of this process since the last change."""
        self.steps = 0
        """Since the last change."""

    def rows(self, ids_N: Tensor) -> Tensor:
        """The row of each id."""
        jagged = JaggedTensor(ids_N, lengths=torch.tensor([len(ids_N)], device=ids_N.device))
        return self.map.remap({"ids": jagged})["ids"].values()

    def observe(self, ids_N: Tensor) -> None:
        """Take note of the ids of a training step, none included."""
        self.seen.append(torch.stack([ids_N, torch.full_like(ids_N, self.steps)], dim=1))
        self.steps += 1

    @property
    def due(self) -> bool:
        """Whether the interval is over."""
        return self.steps >= self.config.interval

    def all_seen(self) -> Tensor:
        """Distinct pairs [P, 2] of id and step of all processes since the last change, sorted; collective."""
        device = self.map.device
        mine = torch.cat([torch.empty(0, 2, dtype=torch.int64, device=device), *self.seen])
        return torch.unique(torch.cat(gathered(mine)), dim=0)

    @torch.no_grad()
    def change(self) -> Tensor:
        """Admit and evict; collective.

        Returns:
            Rows that have changed hands, int64 [R], sorted.
        """
        ids = self.all_seen()[:, 0].contiguous()
        self.seen, self.steps = [], 0
        training = self.map.training
        self.map.train()
        self.map._input_history_buffer_size = -1  # so that it takes as many ids as there are
        self.map.profile({"ids": JaggedTensor(ids, lengths=torch.tensor([len(ids)], device=ids.device))})
        self.map.train(training)
        rows = self.map.evict()
        return torch.empty(0, dtype=torch.int64, device=ids.device) if rows is None else rows.sort().values

    def state(self) -> dict[str, Any]:
        """What is not in the buffers; collective."""
        return {"seen": self.all_seen().cpu(), "steps": self.steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore it: the first process takes all pairs, which are joined again before they count."""
        self.steps = state["steps"]
        self.seen = [state["seen"].to(self.map.device)] if dist.get_rank() == 0 else []
        self.map._current_iter = -1  # read again from its buffer


def gathered(values: Tensor) -> list[Tensor]:
    """Tensors [P, ...] of all processes, with P of their own."""
    count = torch.tensor([len(values)], device=values.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    lengths = [int(c) for c in counts]
    padded = values.new_zeros(max(lengths), *values.shape[1:])
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


class ManagedLookup:
    """Forward pre-hook of a sharded collection: gives ids their rows, and while training hands rows out.

    Args:
        collection: the sharded collection.
        maps: by table; of this collection or others.
        initial: initial rows.
        optimizer: of the tables.
    """

    def __init__(
        self, collection: Any, maps: Mapping[str, IdMap], initial: InitialRows, optimizer: TableOptimizer
    ) -> None:
        self.maps, self.initial, self.optimizer = maps, initial, optimizer
        collection.register_forward_pre_hook(self)

    def __call__(self, collection: nn.Module, inputs: tuple[KeyedJaggedTensor]) -> tuple[KeyedJaggedTensor]:
        """The same look-up with rows in the place of ids."""
        (jagged,) = inputs
        keys = jagged.keys()
        parts = dict(zip(keys, jagged.values().split(jagged.length_per_key()), strict=True))
        for name in filter(self.maps.__contains__, keys):  # in the same order on all processes
            known = self.maps[name]
            if collection.training and torch.is_grad_enabled():
                if known.due:
                    reset_rows(collection, name, known.change(), self.initial, self.optimizer)
                known.observe(parts[name])
            parts[name] = known.rows(parts[name])
        values = torch.cat([parts[name] for name in keys])
        return (
            KeyedJaggedTensor(
                keys,
                values,
                lengths=jagged.lengths(),
                stride=jagged.stride(),
                length_per_key=jagged.length_per_key(),
            ),
        )


def manage_ids(
    model: nn.Module,
    managed: Mapping[str, ManagedIds],
    initial: InitialRows,
    optimizer: TableOptimizer,
    device: torch.device,
) -> nn.ModuleDict:
    """Let the sharded collections of ``model`` look up managed tables by id; returns the maps by table."""
    maps = {name: IdMap(config, device) for name, config in managed.items()}
    for _, collection in sharded_collections(model):
        if collection._table_name_to_config.keys() & maps.keys():
            ManagedLookup(collection, maps, initial, optimizer)
    return nn.ModuleDict(maps)


def check_managed(table: str, managed: ManagedIds, storage: Storage, sharding: Sharding) -> None:
    """Refuse what does not work together.

    Raises:
        ValueError: naming table and option.
    """
    if sharding.of(table) == "data_parallel":
        raise ValueError(
            f"table {table!r} is in managed_ids, whose rows are changed where they are held, but its sharding is "
            "data_parallel, which has no such place; set it to row_wise"
        )
    if storage.of(table).memory == "uvm_caching":
        raise ValueError(
            f"table {table!r} is in managed_ids, whose rows are changed in place, but its storage.memory is "
            f"uvm_caching, where the GPU's cache would keep the old ones; set it to uvm or device ({managed.rows} rows)"
        )
