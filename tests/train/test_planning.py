"""The plan of a cluster: bytes, look-ups and exchanges add up, and match what is really sharded."""

from __future__ import annotations

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from laser.train.optim import TableOptimizer
from laser.train.placement import Sharding, TableSize
from laser.train.plan_text import describe
from laser.train.planning import Cluster, Plan, plan
from laser.train.sharding import shard_collections, sharded_collections
from laser.train.table_storage import Storage, TableStorage

SIZES = [TableSize("item", 1000, 8), TableSize("user", 100, 16)]
IDS = {"item": 4000.0, "user": 10.0}


def planned(sharding: Sharding, optimizer: str = "adagrad", processes: int = 4, memory_gb: float = 80.0) -> Plan:
    cluster = Cluster(processes=processes, memory_gb=memory_gb)
    return plan(SIZES, sharding, TableOptimizer(name=optimizer), IDS, cluster)


@pytest.mark.parametrize("default", ["row_wise", "table_wise", "column_wise", "table_row_wise"])
def test_every_byte_and_id_is_somewhere(default) -> None:
    sizes = [TableSize("item", 1000, 16), TableSize("user", 100, 16)]
    found = plan(
        sizes, Sharding(default=default), TableOptimizer(name="adagrad"), IDS, Cluster(processes=4, host_processes=2)
    )
    assert sum(load.weights for load in found.loads) == 4 * 16 * 1100
    assert sum(load.state for load in found.loads) == 4 * 16 * 1100
    copies = 4 if default == "column_wise" else 1
    assert sum(load.ids for load in found.loads) == copies * 4010


def test_by_hand_row_wise() -> None:
    load = planned(Sharding(), "rowwise_adagrad").loads[0]
    assert load.weights == 4 * (250 * 8 + 25 * 16)
    assert load.state == 4 * 275
    assert load.ids == 1000 + 2.5
    # ids that come from the other three processes, embeddings to them and gradients from them
    assert load.exchanged == pytest.approx(0.75 * (1000 * (8 + 2 * 32) + 2.5 * (8 + 2 * 64)))


def test_by_hand_on_two_hosts() -> None:
    cluster = Cluster(processes=4, host_processes=2, host_exchange_rate=3e8, exchange_rate=1e8)
    sharding = Sharding(default="table_row_wise")
    found = plan(SIZES, sharding, TableOptimizer(name="sgd"), IDS, cluster)
    assert [load.weights for load in found.loads] == [4 * 500 * 8] * 2 + [4 * 50 * 16] * 2
    assert [load.ids for load in found.loads] == [2000, 2000, 5, 5]
    assert found.loads[0].exchanged == pytest.approx(0.75 * 2000 * (8 + 2 * 32))
    # of three others two are on the other host: 2/3 of the bytes at a third of the rate
    assert cluster.seconds(300.0) == pytest.approx(200 / 1e8)
    assert Cluster(processes=8).seconds(300.0) == pytest.approx(300 / 3e11)


def test_replicas_exchange_gradients_whatever_the_batch() -> None:
    for ids in (IDS, {"item": 0.0, "user": 0.0}):
        loads = plan(SIZES, Sharding(default="data_parallel"), TableOptimizer(), ids, Cluster(processes=4)).loads
        assert {load.exchanged for load in loads} == {0.75 * 2 * 4 * (1000 * 8 + 100 * 16)}
        assert {load.weights for load in loads} == {4 * (1000 * 8 + 100 * 16)}
        assert {load.ids for load in loads} == {sum(ids.values()) / 4}


def test_what_is_reserved_is_not_for_tables() -> None:
    assert Cluster(memory_gb=80, reserved_gb=30).room == 50e9
    with pytest.raises(ValueError, match="reserve less than there is"):
        Cluster(memory_gb=80, reserved_gb=80)


def test_one_process_exchanges_nothing() -> None:
    load = planned(Sharding(), processes=1).loads[0]
    assert (load.exchanged, load.ids) == (0, 4010)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_of_distinct_ids_is_one(share) -> None:
    with pytest.raises(ValueError, match=r"distinct is .* expected a share"):
        Cluster(distinct=share)


def test_memory_that_is_short_is_said() -> None:
    short = planned(Sharding(), memory_gb=1e-6)
    assert not short.fits
    assert "DOES NOT FIT" in describe(short)
    assert "fits" in describe(planned(Sharding()))


def test_equal_processes_share_a_line() -> None:
    text = describe(planned(Sharding(tables={"user": "table_wise"})))
    below = text.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in below] == ["process", "0", "1-3"]


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_bytes_are_those_of_the_sharded_tables(optimizer: str) -> None:
    configs = [
        EmbeddingConfig(name=s.name, embedding_dim=s.width, num_embeddings=s.rows, feature_names=[s.name])
        for s in SIZES
    ]
    model = torch.nn.ModuleDict({c.name: EmbeddingCollection(tables=[c], device=torch.device("meta")) for c in configs})
    shard_collections(model, Sharding(), TableOptimizer(name=optimizer), torch.device("cpu"))
    weights = state = 0
    for _, collection in sharded_collections(model):
        weights += sum(4 * value.size().numel() for value in collection.state_dict().values())
        for values in collection.fused_optimizer.state_dict()["state"].values():
            state += sum(4 * value.size().numel() for value in values.values() if value.size().numel() > 1)
    load = planned(Sharding(), optimizer, processes=1).loads[0]
    assert (load.weights, load.state) == (weights, state)


def test_half_precision_and_host_memory_count() -> None:
    sharding, adagrad = Sharding(), TableOptimizer(name="adagrad")
    storage = Storage(
        default=TableStorage(weights="float16"),
        tables={"item": TableStorage(weights="float16", memory="uvm_caching")},
        outputs="bfloat16",
        cache_share=0.25,
    )
    full = plan(SIZES, sharding, adagrad, IDS, Cluster(processes=4)).loads[0]
    load = plan(SIZES, sharding, adagrad, IDS, Cluster(processes=4), storage).loads[0]
    assert (load.weights, load.state) == (full.weights / 2, full.state)
    assert load.host == 0.75 * 250 * 8 * (2 + 4)
    assert load.held() == load.weights + load.state - load.host
    ids = 0.75 * 8 * load.ids
    assert load.exchanged - ids == pytest.approx((full.exchanged - ids) / 2)
