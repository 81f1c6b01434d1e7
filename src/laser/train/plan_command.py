"""``laser plan``: reads recipes as ``laser fit`` does, and prints the sharding plan instead of training."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser

from laser.train.command_line import RecipeCLI
from laser.train.optim import TableOptimizer
from laser.train.placement import Sharding
from laser.train.plan_text import describe
from laser.train.planning import Cluster, plan_of
from laser.train.refusals import check_combination
from laser.train.table_storage import Storage, TableStorage

GPU = torch.device("cuda")


class PlanCLI(RecipeCLI):
    """Parses recipes and a cluster."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of the cluster, beside those of a recipe."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Cluster, "cluster")


def main(arguments: list[str]) -> int:
    """Print the plan.

    Returns:
        0, or 1 when a process has not the memory for its tables.

    Raises:
        ValueError: for any mistake of the user.
        argparse.ArgumentError: for options that are unknown or of the wrong type.
    """
    config = PlanCLI.parse("plan", arguments)
    strategy = config.trainer.strategy
    options = getattr(strategy, "init_args", None)
    given = getattr(options, "sharding", None)
    sharding = Sharding(**given.as_dict()) if given is not None else Sharding()
    storage = storage_of(getattr(options, "storage", None))
    optimizer = TableOptimizer(**config.model.table_optimizer.as_dict())
    trainer = config.trainer
    precision = str(trainer.precision or "32-true")
    check_combination(sharding, optimizer, storage, GPU, precision, trainer.accumulate_grad_batches)
    cluster = config.cluster.as_dict()
    managed = getattr(options, "managed_ids", None) or {}
    cluster["rows"] = {name: each["rows"] for name, each in managed.items()} | cluster["rows"]
    found = plan_of(config.data, optimizer, sharding, Cluster(**cluster), storage)
    print(describe(found))
    return 0 if found.fits else 1


def storage_of(options: Any) -> Storage:
    """Storage of a recipe's options."""
    if options is None:
        return Storage()
    given = options.as_dict()
    tables = {name: TableStorage(**each) for name, each in given.pop("tables").items()}
    return Storage(default=TableStorage(**given.pop("default")), tables=tables, **given)
