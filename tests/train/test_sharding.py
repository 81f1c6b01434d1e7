"""Refusals before anything is built."""

from __future__ import annotations

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from laser.train.optim import TableOptimizer
from laser.train.placement import Placement, Sharding, TableSize, place
from laser.train.refusals import check_combination
from laser.train.sharding import module_plan, shard_collections
from laser.train.table_storage import Storage, TableStorage, check_table_names

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("sharding", "optimizer", "device", "precision", "accumulate", "words"),
    [
        (Sharding(default="column_wise"), "rowwise_adagrad", GPU, "32-true", 1, "column_wise.*rowwise_adagrad"),
        (Sharding(tables={"a": "column_wise"}), "rowwise_adagrad", CPU, "32-true", 1, "column_wise.*rowwise_adagrad"),
        (Sharding(), "adam", CPU, "32-true", 1, "CPU.*adam"),
        (Sharding(), "sgd", CPU, "bf16-true", 1, "bf16-true.*bf16-mixed"),
        (Sharding(), "sgd", GPU, "16-mixed", 1, "16-mixed.*bf16-mixed"),
        (Sharding(), "sgd", CPU, "32-true", 3, "accumulate_grad_batches is 3"),
    ],
)
def test_combinations_that_do_not_work_are_named(sharding, optimizer, device, precision, accumulate, words):
    with pytest.raises(ValueError, match=words):
        check_combination(sharding, TableOptimizer(name=optimizer), Storage(), device, precision, accumulate)


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd"])
@pytest.mark.parametrize("default", ["row_wise", "table_wise", "column_wise", "table_row_wise", "data_parallel"])
def test_combinations_that_work_pass(default, optimizer):
    check_combination(Sharding(default=default), TableOptimizer(name=optimizer), Storage(), CPU, "bf16-mixed", 1)


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        (Storage(outputs="bfloat16"), "outputs is bfloat16.*no CPU kernel"),
        (Storage(tables={"a": TableStorage(memory="uvm")}), "memory is uvm,.*set it to device"),
        (Storage(default=TableStorage(memory="uvm_caching")), "memory is uvm_caching,.*set it to device"),
    ],
)
def test_storage_that_a_cpu_cannot_do_is_named(storage, words):
    with pytest.raises(ValueError, match=words):
        check_combination(Sharding(), TableOptimizer(), storage, CPU, "32-true", 1)
    check_combination(Sharding(), TableOptimizer(), storage, GPU, "32-true", 1)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("memory", ["device", "uvm", "uvm_caching"])
def test_bfloat16_tables_are_refused_before_fbgemm_fails(memory, device):
    half = TableStorage(weights="bfloat16", memory=memory)
    for storage in (Storage(default=half), Storage(tables={"a": half})):
        with pytest.raises(ValueError, match=r"storage.weights is bfloat16.*set it to float16 or float32"):
            check_combination(Sharding(), TableOptimizer(), storage, device, "32-true", 1)


@pytest.mark.parametrize("name", ["adagrad", "sgd"])
def test_weight_decay_that_would_be_left_out_is_named(name):
    with pytest.raises(ValueError, match=f"weight_decay is 0.1.*{name}.*rowwise_adagrad or adam"):
        check_combination(Sharding(), TableOptimizer(name=name, weight_decay=0.1), Storage(), CPU, "32-true", 1)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize(("weights", "outputs"), [("float16", "float32"), ("float32", "float16")])
def test_half_precision_is_kept_and_handed_on(weights, outputs):
    config = EmbeddingConfig(name="a", embedding_dim=8, num_embeddings=10, feature_names=["a"])
    model = torch.nn.ModuleDict({"x": EmbeddingCollection(tables=[config], device=torch.device("meta"))})
    storage = Storage(tables={"a": TableStorage(weights=weights)}, outputs=outputs)
    shard_collections(model, Sharding(), TableOptimizer(initial_accumulator=0.0), CPU, storage)
    weight = model["x"].embeddings["a"].weight
    weight.data.fill_(1.0)
    rows = model["x"](KeyedJaggedTensor(["a"], torch.tensor([1, 4]), lengths=torch.tensor([2])))["a"].values()
    assert (weight.dtype, rows.dtype) == (getattr(torch, weights), getattr(torch, outputs))
    rows.float().sum().backward()
    assert weight.detach()[[1, 4]].float().unique().item() == pytest.approx(0.95, abs=1e-3)
    assert weight.detach()[[0, 2]].unique().item() == 1.0


def test_unknown_tables_of_the_storage_are_named():
    with pytest.raises(ValueError, match=r"storage.tables names 'author'.*it has a, b"):
        check_table_names("storage.tables", {"author": TableStorage()}, ["a", "b"])


TABLES = [TableSize("a", 10, 8), TableSize("b", 20, 8), TableSize("c", 30, 8)]


@pytest.mark.usefixtures("group_of_one")
def test_the_plan_follows_the_placement_with_fused_kernels_only():
    configs = [
        EmbeddingConfig(name=table.name, embedding_dim=8, num_embeddings=table.rows, feature_names=[table.name])
        for table in TABLES
    ]
    collection = EmbeddingCollection(tables=configs, device=torch.device("meta"))
    placements = {
        "a": Placement("table_wise", (0,)),
        "b": Placement("column_wise", (0,)),
        "c": Placement("row_wise", (0,)),
    }
    plan = module_plan(collection, placements, None, "cpu")
    found = {name: parameter.sharding_type for name, parameter in plan.items()}
    assert found == {name: placement.kind for name, placement in placements.items()}
    assert {parameter.compute_kernel for parameter in plan.values()} == {"fused"}


def test_tables_get_their_own_sharding():
    found = place(TABLES, Sharding(tables={"a": "table_wise", "b": "column_wise"}), 2)
    assert found == {
        "a": Placement("table_wise", (0,)),
        "b": Placement("column_wise", (0, 1)),
        "c": Placement("row_wise", (0, 1)),
    }


def test_tables_are_spread_over_hosts_and_their_processes():
    found = place(TABLES, Sharding(default="table_row_wise", tables={"b": "data_parallel"}), 4, 2)
    assert found == {
        "c": Placement("table_row_wise", (0, 1)),
        "a": Placement("table_row_wise", (2, 3)),
        "b": Placement("data_parallel", (0, 1, 2, 3)),
    }


def test_on_one_host_rows_go_to_all_processes():
    found = place(TABLES, Sharding(default="table_row_wise"), 2)
    assert set(found.values()) == {Placement("row_wise", (0, 1))}


def test_hosts_must_be_full():
    with pytest.raises(ValueError, match=r"6 processes do not fill hosts of 4.*multiple of 4.*row_wise"):
        place(TABLES, Sharding(tables={"a": "table_row_wise"}), 6, 4)
    assert len(place(TABLES, Sharding(), 6, 4)) == 3


@pytest.mark.parametrize("sharding", [Sharding(default="data_parallel"), Sharding(tables={"a": "data_parallel"})])
@pytest.mark.parametrize(
    ("optimizer", "storage", "words"),
    [
        (TableOptimizer(name="adam"), Storage(), "data_parallel.*adam.*row_wise"),
        (TableOptimizer(name="rowwise_adagrad", weight_decay=0.1), Storage(), "data_parallel.*weight_decay 0.1"),
        (TableOptimizer(), Storage(default=TableStorage(weights="float16")), "float16 in device"),
        (TableOptimizer(), Storage(tables={"a": TableStorage(memory="uvm")}), "float32 in uvm"),
    ],
)
def test_replicas_that_would_train_otherwise_are_named(sharding, optimizer, storage, words):
    with pytest.raises(ValueError, match=words):
        check_combination(sharding, optimizer, storage, GPU, "32-true", 1)


def test_other_tables_may_be_kept_as_replicas_cannot():
    sharding = Sharding(tables={"a": "data_parallel"})
    storage = Storage(default=TableStorage(weights="float16"), tables={"a": TableStorage()})
    check_combination(sharding, TableOptimizer(), storage, GPU, "32-true", 1)


def test_one_process_holds_whole_tables():
    found = place(TABLES, Sharding(tables={"b": "column_wise"}), 1)
    assert set(found.values()) == {Placement("table_wise", (0,))}


def test_whole_tables_go_to_the_process_that_holds_least():
    sizes = [TableSize(name, rows, 4) for name, rows in (("e", 9), ("d", 5), ("c", 4), ("b", 3), ("a", 3))]
    found = place(sizes, Sharding(default="table_wise"), 2)
    assert {name: placement.ranks for name, placement in found.items()} == {
        "e": (0,),
        "d": (1,),
        "c": (1,),
        "a": (0,),
        "b": (1,),
    }
    assert place(reversed(sizes), Sharding(default="table_wise"), 2) == found


def test_columns_that_cannot_be_cut_are_named():
    odd = TableSize("odd", 9, 6)
    for world_size, multiple in ((1, 4), (2, 8)):
        with pytest.raises(ValueError, match=rf"'odd' of width 6.*multiple of {multiple}"):
            place([odd], Sharding(default="column_wise"), world_size)


def test_unknown_tables_are_named():
    with pytest.raises(ValueError, match=r"names 'author'.*it has a, b, c"):
        place(TABLES, Sharding(tables={"author": "row_wise"}), 2)
