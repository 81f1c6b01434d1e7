"""Refusals before anything is built."""

from __future__ import annotations

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from laser.train.optim import TableOptimizer
from laser.train.placement import Placement, Sharding, TableSize, place
from laser.train.sharding import check_combination, module_plan

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
        check_combination(sharding, TableOptimizer(name=optimizer), device, precision, accumulate)


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd"])
@pytest.mark.parametrize("default", ["row_wise", "table_wise", "column_wise"])
def test_combinations_that_work_pass(default, optimizer):
    check_combination(Sharding(default=default), TableOptimizer(name=optimizer), CPU, "bf16-mixed", 1)


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
