"""TorchRec's sharded collection of tables with other ways to look rows up, and two more kinds of sharding.

A single process has all rows. Several exchange ids and rows as ``laser.train.exchange`` says, and not as TorchRec does.
TorchRec plans, keeps parameters and their state, and runs FBGEMM's kernels and fused optimizers.

Legend of shape suffixes: N ids of a key; W embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from laser.model.embeddings import SortedIds
from laser.train.exchange import Exchange, parts_of
from laser.train.replicated_tables import ReplicatedLookup, ReplicatedSharding
from laser.versions import check_triple

check_triple()

from fbgemm_gpu.split_embedding_configs import SparseType  # noqa: E402
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection  # noqa: E402
from torchrec.distributed.embedding_lookup import GroupedEmbeddingsLookup  # noqa: E402
from torchrec.distributed.sharding.twrw_sharding import BaseTwRwEmbeddingSharding  # noqa: E402
from torchrec.distributed.types import ShardingEnv  # noqa: E402
from torchrec.modules.embedding_modules import EmbeddingCollection  # noqa: E402
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # noqa: E402


class HostRowsSharding(BaseTwRwEmbeddingSharding):
    """table_row_wise, a table on one host and its rows spread over that host's processes.

    TorchRec has it for pooled look-ups only, where the processes of a host add up before they answer others.
    """

    def create_input_dist(self, device: torch.device | None = None) -> Any:
        """None of TorchRec's."""
        return nn.Module()

    def create_lookup(
        self, device: torch.device | None = None, fused_params: Any = None, feature_processor: Any = None
    ) -> GroupedEmbeddingsLookup:
        """Look-ups in the rows of this process."""
        return GroupedEmbeddingsLookup(
            grouped_configs=self._grouped_embedding_configs_per_rank[self._rank],
            pg=self._pg,
            device=device or self._device,
            env=self._env,
        )

    def create_output_dist(self, device: torch.device | None = None) -> Any:
        """None of TorchRec's."""
        return nn.Module()


KINDS: dict[str, Any] = {"table_row_wise": HostRowsSharding, "data_parallel": ReplicatedSharding}


class Rows:
    """Rows [N, W] of the ids of one key; has of TorchRec's JaggedTensor what a look-up is asked for."""

    def __init__(self, rows_NW: Tensor) -> None:
        self.rows_NW = rows_NW

    def values(self) -> Tensor:
        """The rows."""
        return self.rows_NW


class TableCollection(ShardedEmbeddingCollection):
    """Tables of one width, sharded by the plan that its sharder was given.

    Args:
        hosts: a gloo group of all processes, or ``None`` for the common one.
        arguments, options: of TorchRec's collection.
    """

    def __init__(self, hosts: dist.ProcessGroup | None, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.exchanges: list[Exchange | ReplicatedLookup] = []
        """By kind of sharding."""
        if self._env.world_size > 1:
            kinds = zip(self._sharding_type_to_sharding.values(), self._lookups)
            self.exchanges = [_exchange(sharding, look_up, hosts) for sharding, look_up in kinds]

    @classmethod
    def create_embedding_sharding(
        cls,
        sharding_type: str,
        sharding_infos: list[Any],
        env: ShardingEnv,
        device: torch.device | None = None,
        qcomm_codecs_registry: dict[str, Any] | None = None,
    ) -> Any:
        """What does the look-ups of the tables with this sharding."""
        if sharding_type in KINDS:
            return KINDS[sharding_type](sharding_infos=sharding_infos, env=env, device=device)
        return super().create_embedding_sharding(sharding_type, sharding_infos, env, device, qcomm_codecs_registry)

    def forward(self, *inputs: Any, **_options: Any) -> Any:
        """By key, what has the rows of its ids as ``values()``, a dictionary of ``Rows``; collective."""
        (ids,) = inputs
        rows = self._of_all(ids) if self.exchanges else self._own(ids)
        return {key: Rows(rows_NW) for key, rows_NW in rows.items()}

    def _own(self, ids: KeyedJaggedTensor) -> dict[str, Tensor]:
        (sharding,), (look_up,) = self._sharding_type_to_sharding.values(), self._lookups  # see ``placement.place``
        keys = sharding.feature_names()  # tables of one format after those of another
        if keys != ids.keys():
            ids = ids.permute([ids.keys().index(key) for key in keys])
        rows = look_up(ids).view(-1, self._embedding_dim).split(ids.length_per_key())
        return dict(zip(keys, rows, strict=True))

    def _of_all(self, ids: KeyedJaggedTensor) -> dict[str, Tensor]:
        parts = dict(zip(ids.keys(), ids.values().split(ids.length_per_key()), strict=True))
        if not isinstance(ids, SortedIds):
            return self._of_unsorted(parts, ids.stride())
        return self._exchanged(parts, ids.on_host or {key: part.cpu() for key, part in parts.items()}, ids.stride())

    def _of_unsorted(self, parts: dict[str, Tensor], stride: int) -> dict[str, Tensor]:
        """As of rows that ids were given (``laser.train.managed_ids``); the host waits for them."""
        pairs = {key: part.sort() for key, part in parts.items()}
        known = {key: pair.values for key, pair in pairs.items()}
        rows = self._exchanged(known, {key: part.cpu() for key, part in known.items()}, stride)
        return {key: rows_NW[pairs[key].indices.argsort()] for key, rows_NW in rows.items()}

    def _exchanged(self, ids: Mapping[str, Tensor], on_host: Mapping[str, Tensor], stride: int) -> dict[str, Tensor]:
        rows: dict[str, Tensor] = {}
        for exchange in self.exchanges:
            rows |= exchange.rows(ids, on_host, stride)
        return rows


def _exchange(sharding: Any, look_up: Any, hosts: dist.ProcessGroup | None) -> Exchange | ReplicatedLookup:
    """How tables of a kind of sharding are looked up; those that are whole on every process without an exchange."""
    if isinstance(look_up, ReplicatedLookup):
        return look_up
    groups_Q = sharding._grouped_embedding_configs_per_rank
    group = next(group for groups in groups_Q for group in groups)
    dtype = (group.fused_params or {}).get("output_dtype", SparseType.FP32).as_dtype()
    width = group.embedding_tables[0].local_cols
    return Exchange([parts_of(groups) for groups in groups_Q], width, dtype, hosts, look_up)


class TableSharder(EmbeddingCollectionSharder):
    """Shards collections of tables.

    Args:
        hosts: a gloo group of all processes, or ``None`` for the common one.
        fused_params: of FBGEMM's kernels.
    """

    def __init__(self, hosts: dist.ProcessGroup | None, fused_params: dict[str, Any]) -> None:
        super().__init__(fused_params=fused_params)
        self.hosts = hosts

    def shard(
        self,
        module: EmbeddingCollection,
        params: Any,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> TableCollection:
        """The sharded collection; see ``torchrec.distributed.embedding.EmbeddingCollectionSharder``."""
        return TableCollection(self.hosts, module, params, env, self.fused_params, device, module_fqn=module_fqn)
