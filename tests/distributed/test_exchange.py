"""Several processes find the rows, and make the updates, that they would with TorchRec's own exchange."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from laser.model.embeddings import SortedIds, offsets_of_bags
from laser.train import sharding
from laser.train.optim import TableOptimizer
from laser.train.placement import Sharding
from laser.train.sharding import shard_collections, sharded_collections
from laser.train.table_collection import TableCollection
from laser.train.table_storage import Storage, TableStorage

CPU = torch.device("cpu")
ROWS = {"rows": 41, "few": 1, "whole": 30, "columns": 20, "short": 50}
KINDS = Sharding(tables={"whole": "table_wise", "columns": "column_wise"})
"""All others by rows: of the table with one the second process has none."""
STORAGE = Storage(tables={"short": TableStorage(weights="float16")})
COUNTS = ({"rows": 17, "few": 1, "whole": 0, "columns": 9, "short": 20}, dict.fromkeys(ROWS, 0) | {"short": 3})
"""Ids of each process in the two steps of a test."""


def collection_of(rows: dict[str, int] = ROWS, kinds: Sharding = KINDS, storage: Storage = STORAGE) -> TableCollection:
    configs = [
        EmbeddingConfig(name=name, embedding_dim=16, num_embeddings=count, feature_names=[name])
        for name, count in rows.items()
    ]
    model = torch.nn.ModuleDict({"x": EmbeddingCollection(tables=configs, device=torch.device("meta"))})
    shard_collections(model, kinds, TableOptimizer(learning_rate=0.5), CPU, storage)
    ((_, collection),) = sharded_collections(model)
    assert isinstance(collection, TableCollection)
    for name, tensor in weights(collection).items():
        generator = torch.Generator().manual_seed(len(name) + dist.get_rank())
        tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return collection


def weights(collection: ShardedEmbeddingCollection) -> dict[str, torch.Tensor]:
    """The parts of tables that this process has."""
    found = {}
    for name, value in collection.state_dict().items():
        for shard in value.local_shards():
            found[f"{name} {shard.metadata.shard_offsets}"] = shard.tensor
    return found


def ids(step: int, *, ascending: bool, on_host: bool) -> KeyedJaggedTensor:
    """Other ids on each process, one of which has none in the second step but of one table."""
    generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
    counts = COUNTS[step * (1 - dist.get_rank())]
    drawn = [torch.randperm(ROWS[name], generator=generator)[:count] for name, count in counts.items()]
    parts = [part.sort().values for part in drawn] if ascending else drawn
    arguments = (list(ROWS), torch.cat(parts))
    sizes = list(counts.values())
    options = {"offsets": offsets_of_bags(sizes, 16, CPU), "stride": 16, "length_per_key": sizes}
    if not ascending:
        return KeyedJaggedTensor(*arguments, **options)
    return SortedIds(dict(zip(ROWS, parts, strict=True)) if on_host else {}, *arguments, **options)


def trained(collection: TableCollection, forward, kind: dict[str, bool]) -> list[torch.Tensor]:
    """Rows of both steps, with an update after each, and the parts of tables after them."""
    found = []
    for step in range(2):
        answer = forward(collection, ids(step, **kind))
        rows = [answer[name].values() for name in ROWS]
        (sum((1 + at) * each.square().sum() for at, each in enumerate(rows))).backward()
        found += [each.detach().clone() for each in rows]
    return found + list(weights(collection).values())


def process(rank: int, folder: str) -> None:
    """Numbers of ids take a group of their own, as on GPUs."""
    hosts = dist.new_group(backend="gloo")
    sharding.hosts_group = lambda *_: hosts  # type: ignore[assignment]
    expected = trained(collection_of(), ShardedEmbeddingCollection.forward, {"ascending": False, "on_host": False})
    results = {"ids": sum(len(tensor) for tensor in expected), "wrong": []}
    for ascending, on_host in ((True, True), (True, False), (False, False)):
        kind = {"ascending": ascending, "on_host": on_host}
        wanted = expected
        if kind["ascending"]:
            wanted = trained(collection_of(), ShardedEmbeddingCollection.forward, kind)
        found = trained(collection_of(), TableCollection.forward, kind)
        results["wrong"] += [
            (kind, at) for at, (one, two) in enumerate(zip(found, wanted, strict=True)) if not torch.equal(one, two)
        ]
    results["groups"] = collection_of().exchanges[0].hosts is hosts
    torch.save(results, f"{folder}/{rank}.pt")


def test_two_processes(two_processes):
    folder = two_processes(process)
    for rank in range(2):
        found = torch.load(folder / f"{rank}.pt", weights_only=True)
        assert found["wrong"] == []
        assert found["groups"]
        assert found["ids"] > 100


def without_parts(rank: int, folder: str) -> None:
    """The only table, with rows handed on in half precision, lies on one process."""
    collection = collection_of({"whole": 30}, Sharding(default="table_wise"), Storage(outputs="float16"))
    before = [part.clone() for part in weights(collection).values()]
    known = torch.arange(rank, 30, 3)
    offsets = offsets_of_bags([10], 16, CPU)
    answer = collection(SortedIds({}, ["whole"], known, offsets=offsets, stride=16, length_per_key=[10]))
    rows = answer["whole"].values()
    rows.float().sum().backward()
    after = list(weights(collection).values())
    torch.save({"before": before, "after": after, "rows": rows.detach()}, f"{folder}/{rank}.pt")


def test_a_process_without_parts(two_processes):
    folder = two_processes(without_parts)
    zero, one = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    (table,) = zero["before"]
    for rank, found in enumerate((zero, one)):
        assert torch.equal(found["rows"], table[rank::3].half())
    assert one["before"] == []
    changed = (zero["after"][0] != table).any(dim=1)
    assert changed.tolist() == [row % 3 < 2 for row in range(30)]
