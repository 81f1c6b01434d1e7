"""TorchRec's sharded collection with two more kinds: on the processes of one host, and whole on every process."""

from __future__ import annotations

from typing import Any

import torch

from laser.train.host_rows import HostRowsSharding
from laser.train.replicated_tables import ReplicatedSharding
from laser.versions import check_triple

check_triple()

from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection  # noqa: E402
from torchrec.distributed.types import ShardingEnv  # noqa: E402
from torchrec.modules.embedding_modules import EmbeddingCollection  # noqa: E402

KINDS: dict[str, Any] = {"table_row_wise": HostRowsSharding, "data_parallel": ReplicatedSharding}


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
