"""How often rows that a GPU looks up are in its cache of tables in host memory (``storage.memory: uvm_caching``)."""

from __future__ import annotations

from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import UVMCacheStatsIndex
from torch import nn

from laser.train.sharding import fused_kernels, sharded_collections

LOOKED_UP, MISSED = UVMCacheStatsIndex.num_unique_indices, UVMCacheStatsIndex.num_unique_misses


class TableCache:
    """Counts of this process, which FBGEMM keeps on the device where ``gather_uvm_cache_stats`` is on.

    Args:
        model: with sharded tables.
    """

    def __init__(self, model: nn.Module) -> None:
        kernels = [kernel for _, collection in sharded_collections(model) for kernel in fused_kernels(collection)]
        self.kernels: list[Any] = [kernel for kernel in kernels if kernel.gather_uvm_cache_stats]
        self.before = torch.zeros(UVMCacheStatsIndex.num_conflict_misses + 1, dtype=torch.int64)
        """Counts that are not to be told of."""
        self.paused: torch.Tensor | None = None
        self.forget()

    def _counts(self) -> torch.Tensor:
        """Sums over the kernels; waits for the device."""
        counts = torch.zeros_like(self.before)
        for kernel in self.kernels:
            counts += kernel.get_uvm_cache_stats().cpu()
        return counts

    def forget(self) -> None:
        """Begin to count."""
        self.before = self._counts()

    def pause(self) -> None:
        """Leave out the look-ups from here to ``go_on``."""
        self.paused = self._counts()

    def go_on(self) -> None:
        """Count again."""
        if self.paused is not None:
            self.before = self.before + self._counts() - self.paused
            self.paused = None

    def figures(self, steps: int) -> dict[str, float]:
        """Share of looked-up rows that were in the cache, and rows a step that were not; empty without caches."""
        if not self.kernels:
            return {}
        counted = self._counts() - self.before
        looked_up, missed = int(counted[LOOKED_UP]), int(counted[MISSED])
        return {
            "table_cache_hit_rate": 1.0 - missed / max(looked_up, 1),
            "table_cache_misses": missed / max(steps, 1),
        }
