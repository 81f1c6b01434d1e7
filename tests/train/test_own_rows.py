"""A single process looks its rows up without TorchRec's exchange, and finds what the exchange would."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from laser.model.embeddings import offsets_of_bags
from laser.train.optim import TableOptimizer
from laser.train.placement import Sharding
from laser.train.sharding import shard_collections, sharded_collections
from laser.train.table_storage import Storage, TableStorage

CPU = torch.device("cpu")
ALIKE, MIXED = Storage(), Storage(tables={"c": TableStorage(weights="float16")})
COUNTS = {"a": 5, "b": 0, "c": 7, "d": 3000}


def collection_of(storage: Storage, optimizer: TableOptimizer) -> ShardedEmbeddingCollection:
    """Tables a to d whose rows are told apart by their values."""
    configs = [
        EmbeddingConfig(name=name, embedding_dim=8, num_embeddings=count + 10, feature_names=[name])
        for name, count in COUNTS.items()
    ]
    model = torch.nn.ModuleDict({"x": EmbeddingCollection(tables=configs, device=torch.device("meta"))})
    shard_collections(model, Sharding(), optimizer, CPU, storage)
    ((_, collection),) = sharded_collections(model)
    generator = torch.Generator().manual_seed(1)
    for tensor in sorted_weights(collection).values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return collection


def sorted_weights(collection: ShardedEmbeddingCollection) -> dict[str, torch.Tensor]:
    found = defaultdict(list)
    for name, value in sorted(collection.state_dict().items()):
        shards = value.local_shards() if hasattr(value, "local_shards") else None
        found[name].extend([value] if shards is None else [shard.tensor for shard in shards])
    return {name: tensors[0] for name, tensors in found.items()}


def ids() -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randperm(count + 10, generator=generator)[:count] for count in COUNTS.values()]
    offsets = offsets_of_bags(list(COUNTS.values()), 16, CPU)
    return KeyedJaggedTensor(
        list(COUNTS), torch.cat(parts), offsets=offsets, stride=16, length_per_key=list(COUNTS.values())
    )


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("max_row_gradient", [None, 0.01])
@pytest.mark.parametrize("storage", [ALIKE, MIXED], ids=["alike", "mixed"])
def test_rows_and_updates_are_those_of_the_exchange(storage, max_row_gradient, monkeypatch):
    optimizer = TableOptimizer(learning_rate=0.5, max_row_gradient=max_row_gradient)
    found = []
    for exchange in (False, True):
        collection = collection_of(storage, optimizer)
        if exchange:
            monkeypatch.setattr(type(collection), "forward", ShardedEmbeddingCollection.forward)
        answer = collection(ids())
        rows = {key: answer[key].values() for key in COUNTS}
        torch.cat(list(rows.values())).square().sum().backward()
        assert collection._has_uninitialized_input_dist is not exchange  # else nothing was compared
        found.append((rows, sorted_weights(collection)))
    (own, own_after), (exchanged, after) = found
    for key, count in COUNTS.items():
        assert own[key].shape == (count, 8)
        assert torch.equal(own[key], exchanged[key])
    for name, weights in after.items():
        assert torch.equal(own_after[name], weights)


def test_ids_are_spread_evenly_over_bags():
    offsets = offsets_of_bags([5, 0, 9], 4, CPU)
    assert offsets.diff().view(3, 4).tolist() == [[2, 1, 1, 1], [0, 0, 0, 0], [3, 2, 2, 2]]
    assert offsets.dtype == torch.int64
    assert offsets[0] == 0
