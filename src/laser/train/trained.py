"""The network of a run by itself: whole tables, one device, no trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from torch import nn

from laser.schema import Schema
from laser.train.checkpoint import load


def recipe_of(run: Path) -> dict[str, Any]:
    """The complete recipe that a run was trained with.

    Raises:
        ValueError: when the folder has none.
    """
    file = run / "config.yaml"
    try:
        recipe = yaml.safe_load(file.read_text())
        assert {"model", "data"} <= recipe.keys()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, AssertionError):
        raise ValueError(f"{run} has no recipe config.yaml; give the folder of a run that laser fit wrote") from None
    return recipe


def trained_network(run: Path, schema: Schema, checkpoint: str = "best") -> nn.Module:
    """Build the network of a run on the CPU and load its weights; in evaluation mode.

    Args:
        run: folder of the run.
        schema: of the data set that it was trained on.
        checkpoint: name of one of its checkpoints.

    Raises:
        ValueError: when the folder is no run, has no such checkpoint, or was trained on other data.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Callable[[Schema], nn.Module])
    parsed = parser.parse_object({"network": recipe_of(run)["model"]["network"]})
    built: Any = parser.instantiate_classes(parsed)
    network: nn.Module = built.network(schema)
    tensors = {f"model.network.{name}": tensor for name, tensor in network.state_dict().items()}
    facts = {"schema": schema.fingerprint(), "data_set": schema.name}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process alone, knowingly
        load(run / "checkpoints" / f"{checkpoint}.ckpt", tensors, facts, training=False)
    return network.eval()
