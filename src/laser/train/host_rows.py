"""table_row_wise for look-ups that are not pooled: a table on one host, its rows spread over that host's processes.

TorchRec has this sharding for pooled look-ups only, where the processes of a host add up before they answer others.
Here nothing is added up, so it is row_wise over the processes of one host: every process sends ids to the host that has
the table, each to the process that has the row, and gets rows back. Ids and rows take TorchRec's all-to-all.

Legend of shape suffixes: N ids of this process; W embedding width.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from laser.versions import check_triple

check_triple()

from torchrec.distributed.dist_data import KJTAllToAll, SequenceEmbeddingsAllToAll  # noqa: E402
from torchrec.distributed.embedding_lookup import GroupedEmbeddingsLookup  # noqa: E402
from torchrec.distributed.embedding_sharding import bucketize_kjt_before_all2all  # noqa: E402
from torchrec.distributed.sharding.rw_sequence_sharding import RwSequenceEmbeddingDist  # noqa: E402
from torchrec.distributed.sharding.rw_sharding import RwSparseFeaturesDist  # noqa: E402
from torchrec.distributed.sharding.twrw_sharding import BaseTwRwEmbeddingSharding  # noqa: E402
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # noqa: E402


class HostRowsInput(RwSparseFeaturesDist):
    """Sends each id to the process that has its row.

    Args:
        group: all processes.
        host_size: processes of a host.
        features_per_host: number of tables that each host has; keys come in this order.
        hash_sizes: rows of each of these tables.
        device: of this process.
    """

    # The base class is there for ShardedEmbeddingCollection, which asks it for ``unbucketize_permute_tensor``.
    def __init__(
        self,
        group: dist.ProcessGroup,
        host_size: int,
        features_per_host: list[int],
        hash_sizes: list[int],
        device: torch.device | None,
    ) -> None:
        nn.Module.__init__(self)
        self.host_size = host_size
        blocks = torch.tensor([math.ceil(size / host_size) for size in hash_sizes], dtype=torch.int64, device=device)
        self.register_buffer("blocks", blocks, persistent=False)
        self.order = by_receiver(features_per_host, host_size)
        order = torch.tensor(self.order, dtype=torch.int32, device=device)
        self.register_buffer("order_tensor", order, persistent=False)
        self.unbucketize_permute_tensor: Tensor | None = None
        splits = [count for count in features_per_host for _ in range(host_size)]
        self._dist = KJTAllToAll(pg=group, splits=splits)

    def forward(self, sparse_features: KeyedJaggedTensor) -> Any:
        """Awaitable of the awaitable of the ids that other processes want of this one."""
        sent, place_N = bucketize_kjt_before_all2all(
            sparse_features, num_buckets=self.host_size, block_sizes=self.blocks, output_permute=True
        )
        assert place_N is not None
        if self.order != sorted(self.order):
            sent, place_N = self._in_order(sent, place_N)
        self.unbucketize_permute_tensor = place_N
        return self._dist(sent)

    def _in_order(self, sent: KeyedJaggedTensor, place_N: Tensor) -> tuple[KeyedJaggedTensor, Tensor]:
        """The same by receiver instead of by bucket, and where each id of this process then is."""
        positions = torch.arange(len(place_N), device=place_N.device)
        numbered = KeyedJaggedTensor(sent.keys(), positions, lengths=sent.lengths(), stride=sent.stride())
        came_from_N = numbered.permute(self.order, self.order_tensor).values()
        now_at_N = torch.empty_like(positions)
        now_at_N[came_from_N] = positions
        return sent.permute(self.order, self.order_tensor), now_at_N[place_N]


def by_receiver(features_per_host: list[int], host_size: int) -> list[int]:
    """Keys of a bucketized KJT (bucket after bucket, all tables in each) in the order of the processes they go to."""
    starts = [0, *accumulate(features_per_host)]
    return [
        bucket * starts[-1] + feature
        for host in range(len(features_per_host))
        for bucket in range(host_size)
        for feature in range(starts[host], starts[host + 1])
    ]


class HostRowsOutput(RwSequenceEmbeddingDist):
    """Sends rows back to who asked for them.

    Args:
        group: all processes.
        features_per_rank: number of tables of which each process has rows.
        device: of this process.
    """

    def __init__(self, group: dist.ProcessGroup, features_per_rank: list[int], device: torch.device | None) -> None:
        nn.Module.__init__(self)
        self._dist = SequenceEmbeddingsAllToAll(group, features_per_rank, device)


class HostRowsSharding(BaseTwRwEmbeddingSharding):
    """Parts of a sharded collection for its table_row_wise tables."""

    def _features_per_host(self) -> list[int]:
        return self._features_per_rank(self._grouped_embedding_configs_per_node)

    def create_input_dist(self, device: torch.device | None = None) -> HostRowsInput:
        """Exchange of ids."""
        assert self._pg is not None
        return HostRowsInput(
            self._pg,
            self._local_size,
            self._features_per_host(),
            self._get_feature_hash_sizes(),
            device or self._device,
        )

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

    def create_output_dist(self, device: torch.device | None = None) -> HostRowsOutput:
        """Exchange of rows, and of gradients backward."""
        assert self._pg is not None
        per_rank = [count for count in self._features_per_host() for _ in range(self._local_size)]
        return HostRowsOutput(self._pg, per_rank, device or self._device)
