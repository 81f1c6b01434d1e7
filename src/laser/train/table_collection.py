"""TorchRec's sharded collection with two more kinds: on the processes of one host, and whole on every process.

A single process has all rows, and looks them up without TorchRec's exchange, in which the host waits for the device to
learn how many ids each process gets: the next step could not be prepared before this one has ended.

Legend of shape suffixes: N ids of a key; W embedding width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from laser.train.host_rows import HostRowsSharding
from laser.train.replicated_tables import ReplicatedSharding
from laser.versions import check_triple

check_triple()

from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection  # noqa: E402
from torchrec.distributed.types import ShardingEnv  # noqa: E402
from torchrec.modules.embedding_modules import EmbeddingCollection  # noqa: E402
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # noqa: E402

KINDS: dict[str, Any] = {"table_row_wise": HostRowsSharding, "data_parallel": ReplicatedSharding}


class OwnRows:
    """Rows [N, W] of the ids of one key; has of TorchRec's JaggedTensor what a look-up is asked for."""

    def __init__(self, rows_NW: Tensor) -> None:
        self.rows_NW = rows_NW

    def values(self) -> Tensor:
        """The rows."""
        return self.rows_NW


class TableCollection(ShardedEmbeddingCollection):
    """Tables of one width, sharded by the plan that its sharder was given."""

    @classmethod
    def create_embedding_sharding(
        cls,
        sharding_type: str,
        sharding_infos: list[Any],
        env: ShardingEnv,
        device: torch.device | None = None,
        qcomm_codecs_registry: dict[str, Any] | None = None,
    ) -> Any:
        """What does the look-ups and exchanges of the tables with this sharding."""
        if sharding_type in KINDS:
            return KINDS[sharding_type](sharding_infos=sharding_infos, env=env, device=device)
        return super().create_embedding_sharding(sharding_type, sharding_infos, env, device, qcomm_codecs_registry)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """By key, what has the rows of its ids as ``values()``; several processes answer later, when first read."""
        (ids,) = inputs
        return super().forward(ids, **options) if self._env.world_size > 1 else self._own_rows(ids)

    def _own_rows(self, ids: KeyedJaggedTensor) -> dict[str, OwnRows]:
        (sharding,), (look_up,) = self._sharding_type_to_sharding.values(), self._lookups  # see ``placement.place``
        keys = sharding.feature_names()  # tables of one format after those of another
        if keys != ids.keys():
            ids = ids.permute([ids.keys().index(key) for key in keys])
        rows = look_up(ids).view(-1, self._embedding_dim).split(ids.length_per_key())
        return {key: OwnRows(rows_NW) for key, rows_NW in zip(keys, rows, strict=True)}


class TableSharder(EmbeddingCollectionSharder):
    """Shards collections of tables."""

    def shard(
        self,
        module: EmbeddingCollection,
        params: Any,
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> TableCollection:
        """The sharded collection; see ``torchrec.distributed.embedding.EmbeddingCollectionSharder``."""
        return TableCollection(module, params, env, self.fused_params, device, module_fqn=module_fqn)
