"""Combinations of options that would crash later, hang another process or silently train a different model.

They are refused by name before anything is built (docs/decisions/002-sharding.md).
"""

from __future__ import annotations

import torch

from laser.train.optim import TableOptimizer
from laser.train.placement import Sharding
from laser.train.table_storage import Storage, check_storage


def check_combination(
    sharding: Sharding,
    optimizer: TableOptimizer,
    storage: Storage,
    device: torch.device,
    precision: str,
    accumulate: int,
) -> None:
    """Refuse what does not work together.

    Args:
        sharding: of the tables.
        optimizer: of the tables.
        storage: of the tables.
        device: of this process.
        precision: Lightning's name, such as "bf16-mixed".
        accumulate: value of ``trainer.accumulate_grad_batches``.

    Raises:
        ValueError: one sentence that names both sides and what to set instead.
    """
    if "column_wise" in sharding.used and optimizer.name == "rowwise_adagrad":
        raise ValueError(
            "column_wise sharding with rowwise_adagrad keeps one accumulator per column shard, so results would "
            "depend on the number of processes; set model.table_optimizer.name to adagrad or the sharding to row_wise"
        )
    if optimizer.name == "adam" and device.type == "cpu":
        raise ValueError(
            "embedding tables on the CPU cannot be trained with adam; set model.table_optimizer.name to adagrad, "
            "rowwise_adagrad or sgd"
        )
    if "data_parallel" in sharding.used:
        check_replicated(sharding, optimizer, storage)
    if optimizer.weight_decay and optimizer.name not in ("rowwise_adagrad", "adam"):
        raise ValueError(
            f"model.table_optimizer.weight_decay is {optimizer.weight_decay}, which FBGEMM's {optimizer.name} would "
            "leave out without a word; set it to 0, or model.table_optimizer.name to rowwise_adagrad or adam"
        )
    check_storage(storage, device)
    if precision not in ("32-true", "bf16-mixed"):
        raise ValueError(
            f"trainer.precision is {precision}, but tables update their rows while gradients are computed and "
            "hand on float32; set it to 32-true or bf16-mixed"
        )
    if accumulate != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches is {accumulate}, but tables are updated on every batch, which "
            "accumulation would not change; set it to 1 and raise data.batch_size instead"
        )


def check_replicated(sharding: Sharding, optimizer: TableOptimizer, storage: Storage) -> None:
    """Refuse what would train a data_parallel table otherwise than a sharded one.

    Raises:
        ValueError: one sentence that names both sides and what to set instead.
    """
    if optimizer.name == "adam" or optimizer.weight_decay:
        given = "adam" if optimizer.name == "adam" else f"weight_decay {optimizer.weight_decay}"
        raise ValueError(
            f"data_parallel sharding with model.table_optimizer {given} would not train as other shardings do: it "
            "changes rows of the batch also where their gradient is zero, and added-up gradients do not tell which "
            "those are; set the sharding to row_wise, or the optimizer to adagrad, rowwise_adagrad or sgd without decay"
        )
    kept = [storage.default] if sharding.default == "data_parallel" else []
    names = {name for name, kind in sharding.tables.items() if kind == "data_parallel"}
    if sharding.default == "data_parallel":
        names |= storage.tables.keys() - sharding.tables.keys()
    kept += [storage.of(name) for name in sorted(names)]
    for each in kept:
        if each.weights != "float32" or each.memory != "device":
            raise ValueError(
                f"data_parallel tables are float32 in device memory, but storage gives one {each.weights} in "
                f"{each.memory}; name it in storage.tables with the defaults, or set its sharding to row_wise"
            )
