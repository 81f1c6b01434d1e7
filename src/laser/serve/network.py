"""A model from the options in a bundle: a class of ``laser.model`` and its arguments, checked against its types."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from laser.schema import Schema

TRUSTED = ("laser.model.",)
"""Beginnings of the names of classes that a bundle may name: anything else could be any code of this machine."""


def build_network(config: dict[str, Any], schema: Schema, seed: int, trusted: Iterable[str] = TRUSTED) -> nn.Module:
    """The model, its tables on "meta" and its other weights drawn from the seed.

    Args:
        config: ``class_path`` and ``init_args``, as in a recipe.
        schema: of the data set.
        seed: that the model was trained with.
        trusted: beginnings of class names that may be imported.

    Raises:
        ValueError: when a class is not trusted, does not exist, or does not take the arguments.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    for name in _class_paths(config):
        if not name.startswith(tuple(trusted)):
            raise ValueError(
                f"the model is made of class {name}, which is not in {' or '.join(trusted)}; if you know where the "
                "bundle comes from, pass trusted=[..., 'its.package.']"
            )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Callable[[Schema], nn.Module])
    try:
        made: Any = parser.instantiate_classes(parser.parse_object({"network": config}))
    except ArgumentError as error:
        raise ValueError(f"the model's options do not fit this release: {' '.join(str(error).split())}") from None
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return made.network(schema, table_device="meta", seed=seed)


def _class_paths(config: Any) -> Iterable[str]:
    """Names of all classes anywhere in the options."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from [str(value)] if key == "class_path" else _class_paths(value)
    elif isinstance(config, list):
        for value in config:
            yield from _class_paths(value)
