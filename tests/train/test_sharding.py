"""Refusals before anything is built."""

from __future__ import annotations

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from laser.train.optim import TableOptimizer
from laser.train.sharding import Sharding, check_combination, module_plan

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


@pytest.mark.usefixtures("group_of_one")
def test_tables_get_their_own_sharding_and_fused_kernels_only():
    configs = [
        EmbeddingConfig(name=name, embedding_dim=8, num_embeddings=rows, feature_names=[name])
        for name, rows in (("a", 10), ("b", 20), ("c", 30))
    ]
    collection = EmbeddingCollection(tables=configs, device=torch.device("meta"))
    sharding = Sharding(tables={"a": "table_wise", "b": "column_wise"})
    plan = module_plan(collection, sharding, None, "cpu")
    found = {name: parameter.sharding_type for name, parameter in plan.items()}
    assert found == {"a": "table_wise", "b": "column_wise", "c": "row_wise"}
    assert {parameter.compute_kernel for parameter in plan.values()} == {"fused"}


@pytest.mark.usefixtures("group_of_one")
def test_columns_that_cannot_be_cut_are_named():
    config = EmbeddingConfig(name="odd", embedding_dim=6, num_embeddings=9, feature_names=["odd"])
    collection = EmbeddingCollection(tables=[config], device=torch.device("meta"))
    with pytest.raises(ValueError, match=r"'odd' of width 6.*multiple of 4"):
        module_plan(collection, Sharding(default="column_wise"), None, "cpu")
