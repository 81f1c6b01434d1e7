"""Hit rates from the counters that FBGEMM keeps; on a CPU nothing is cached, so the test counts in its place."""

from __future__ import annotations

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from laser.train.optim import TableOptimizer
from laser.train.placement import Sharding
from laser.train.sharding import fused_kernels, shard_collections, sharded_collections
from laser.train.table_cache import TableCache
from laser.train.table_storage import Storage, TableStorage

pytestmark = pytest.mark.usefixtures("group_of_one")


def model(counting: bool, monkeypatch) -> torch.nn.Module:
    if counting:  # as uvm_caching has it, which needs a GPU
        told = Storage.fused_params
        monkeypatch.setattr(Storage, "fused_params", lambda self: told(self) | {"gather_uvm_cache_stats": True})
    config = EmbeddingConfig(name="a", embedding_dim=8, num_embeddings=10, feature_names=["a"])
    found = torch.nn.ModuleDict({"x": EmbeddingCollection(tables=[config], device=torch.device("meta"))})
    shard_collections(found, Sharding(), TableOptimizer(), torch.device("cpu"))
    return found


def test_hits_of_training_are_counted(monkeypatch):
    tables = model(True, monkeypatch)
    ((_, collection),) = sharded_collections(tables)
    (kernel,) = fused_kernels(collection)

    def look_up(distinct: int, missed: int) -> None:
        kernel.uvm_cache_stats += torch.tensor([1, 3 * distinct, distinct, missed, 0, 0])

    look_up(100, 100)
    cache = TableCache(tables)
    look_up(10, 4)
    look_up(30, 6)
    assert cache.figures(2) == {"table_cache_hit_rate": 0.75, "table_cache_misses": 5.0}
    cache.pause()
    look_up(500, 500)
    cache.go_on()
    look_up(40, 0)
    assert cache.figures(4) == {"table_cache_hit_rate": 0.875, "table_cache_misses": 2.5}
    cache.forget()
    assert cache.figures(0) == {"table_cache_hit_rate": 1.0, "table_cache_misses": 0.0}


def test_tables_without_a_cache_have_no_figures(monkeypatch):
    assert TableCache(model(False, monkeypatch)).figures(3) == {}


def test_cached_tables_are_told_to_count():
    cached = Storage(tables={"a": TableStorage(memory="uvm_caching")})
    assert cached.fused_params()["gather_uvm_cache_stats"] is True
    assert "gather_uvm_cache_stats" not in Storage().fused_params()
