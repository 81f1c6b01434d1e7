"""Fused optimizers of tables equal torch's; one optimizer with fixed groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from laser.train.fused_state import fill_accumulators
from laser.train.optim import DenseOptimizer, SparseDenseOptimizer, TableOptimizer, build_optimizer, dense_parameters
from laser.train.placement import Sharding
from laser.train.schedule import Schedule, build_schedule
from laser.train.sharding import fused_kernels, shard_collections

IDS = torch.tensor([1, 2, 2, 5, 0])


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = EmbeddingConfig(name="t", embedding_dim=8, num_embeddings=7, feature_names=["t"])
        self.tables = EmbeddingCollection(tables=[config], device=torch.device("meta"))
        self.head = nn.Linear(8, 1)

    def forward(self) -> torch.Tensor:
        ids = KeyedJaggedTensor(["t"], IDS, lengths=torch.tensor([3, 2]))
        return self.head(self.tables(ids)["t"].values()).square().sum()


def toy(config: TableOptimizer) -> tuple[Toy, SparseDenseOptimizer]:
    torch.manual_seed(0)
    model = Toy()
    shard_collections(model, Sharding(), config, torch.device("cpu"))
    fill_accumulators(model.tables.fused_optimizer, config)
    model.tables.embeddings["t"].weight.data.normal_()
    fused, kernels = [model.tables.fused_optimizer], fused_kernels(model.tables)
    return model, build_optimizer(dense_parameters(model), fused, config, DenseOptimizer(), kernels)


def rowwise_adagrad(weight: torch.Tensor, state: torch.Tensor, lr: float, eps: float) -> None:
    state += weight.grad.square().mean(1)
    weight.data -= lr * weight.grad / (state.sqrt() + eps)[:, None]


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "sgd"])
def test_table_optimizer_equals_its_definition(name):
    config = TableOptimizer(name=name, learning_rate=0.1, initial_accumulator=0.3)
    model, optimizer = toy(config)
    fused = model.tables.embeddings["t"].weight
    weight = fused.detach().clone().requires_grad_()
    head = nn.Linear(8, 1)
    head.load_state_dict(model.head.state_dict())
    adam = torch.optim.Adam(head.parameters(), lr=1e-3, betas=(0.9, 0.9999))
    plain = {
        "adagrad": torch.optim.Adagrad([weight], lr=0.1, initial_accumulator_value=0.3, eps=1e-8),
        "sgd": torch.optim.SGD([weight], lr=0.1),
    }.get(name)
    accumulator = torch.full((7,), 0.3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        return loss

    for _ in range(4):
        loss = optimizer.step(closure)
        weight.grad = None
        adam.zero_grad()
        expected = head(weight[IDS]).square().sum()
        expected.backward()
        if plain is None:
            rowwise_adagrad(weight, accumulator, 0.1, 1e-8)
        else:
            plain.step()
        adam.step()
        torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(fused.detach(), weight.detach())
    torch.testing.assert_close(model.head.weight, head.weight)


@pytest.mark.usefixtures("group_of_one")
def test_warm_up_reaches_tables_and_dense_parameters():
    model, optimizer = toy(TableOptimizer(name="sgd", learning_rate=0.5))
    schedule = build_schedule(optimizer, Schedule(), 4, lambda: 0)
    weight = model.tables.embeddings["t"].weight

    def closure() -> torch.Tensor:
        loss = model()
        loss.backward()
        return loss

    for factor in (0.25, 0.5, 0.75, 1.0, 1.0):
        before = weight.detach().clone()
        head = model.head.weight.detach()[0].clone()
        # Row 5 is looked up once, so its gradient is that of one output.
        gradient = 2 * (head @ before[5] + model.head.bias.item()) * head
        optimizer.zero_grad()
        optimizer.step(closure)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5 * factor, 1e-3 * factor])
        torch.testing.assert_close(before[5] - weight.detach()[5], 0.5 * factor * gradient)
        schedule.step()


@pytest.mark.usefixtures("group_of_one")
def test_groups_are_tables_then_dense_and_restore():
    _, optimizer = toy(TableOptimizer())
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2]
    saved = optimizer.hyper_parameters()
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 7.0
    optimizer.load_hyper_parameters(saved)
    assert [group["lr"] for group in optimizer.dense.param_groups] == [1e-3]
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.usefixtures("group_of_one")
def test_gradients_of_tables_are_clipped_when_asked():
    model, optimizer = toy(TableOptimizer(name="sgd", learning_rate=1.0, max_gradient=1e-3))
    before = model.tables.embeddings["t"].weight.detach().clone()

    def closure() -> torch.Tensor:
        loss = model()
        loss.backward()
        return loss

    optimizer.step(closure)
    moved = (before - model.tables.embeddings["t"].weight.detach()).abs().amax(1)
    # Row 2 is looked up twice, and FBGEMM clips what each look-up adds; rows 3, 4 and 6 are not looked up.
    expected = torch.tensor([1e-3, 1e-3, 2e-3, 0.0, 0.0, 1e-3, 0.0])
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("norm", [1e-3, 1e3])
def test_gradients_of_rows_are_bounded_when_asked(norm):
    model, optimizer = toy(TableOptimizer(name="sgd", learning_rate=1.0, max_row_gradient=norm))
    before = model.tables.embeddings["t"].weight.detach().clone()
    free = before.clone().requires_grad_()
    model.head(free[IDS]).square().sum().backward()

    def closure() -> torch.Tensor:
        loss = model()
        loss.backward()
        return loss

    optimizer.step(closure)
    moved = before - model.tables.embeddings["t"].weight.detach()
    if norm == 1e3:
        torch.testing.assert_close(moved, free.grad)
    else:
        expected = torch.tensor([1e-3, 1e-3, 2e-3, 0.0, 0.0, 1e-3, 0.0])  # row 2 is looked up twice
        torch.testing.assert_close(moved.norm(dim=1), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(1e3 * moved[5], free.grad[5] / free.grad[5].norm(), atol=1e-3, rtol=0)


@pytest.mark.usefixtures("group_of_one")
def test_weight_decay_of_rows_is_decoupled():
    config = {"name": "rowwise_adagrad", "learning_rate": 0.1}
    torch.manual_seed(1)
    moved = []
    for decay in (0.0, 0.5):
        model, optimizer = toy(TableOptimizer(weight_decay=decay, **config))
        weight = model.tables.embeddings["t"].weight
        before = weight.detach().clone()
        optimizer.step(lambda model=model: model().backward())
        moved.append(before - weight.detach())
    expected = torch.zeros(7, 1)
    expected[IDS.unique()] = 0.1 * 0.5
    torch.testing.assert_close(moved[1] - moved[0], expected * before, atol=1e-6, rtol=1e-4)


@pytest.mark.usefixtures("group_of_one")
def test_kernels_count_training_steps_only():
    """As Adam's bias correction needs, also when a run goes on from a checkpoint.

    Kernels of Adam add one in each forward pass, training or not; those of sgd on the CPU leave it alone.
    """
    model, optimizer = toy(TableOptimizer(name="sgd"))
    (kernel,) = fused_kernels(model.tables)
    seen = []

    def closure() -> torch.Tensor:
        loss = model()
        seen.append(int(kernel.iter_cpu))
        loss.backward()
        return loss

    optimizer.step(closure)
    for count in (kernel.iter, kernel.iter_cpu):
        count += 7  # evaluation
    optimizer.step(closure)
    optimizer.steps = 100  # a checkpoint is loaded
    optimizer.step(closure)
    assert seen == [0, 1, 100]
    assert int(kernel.iter) == 100
