"""Options that an overlay with another class of network leaves behind: said, so that nobody believes them in force."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml


def dropped_options(recipes: Iterable[Path], network: Mapping[str, Any]) -> list[str]:
    """Network options that recipes set and that the class which a run ends up with does not have.

    Args:
        recipes: YAML files, in the order in which they were given.
        network: ``model.network`` of the whole configuration, with ``class_path`` and ``init_args``.
    """
    given: dict[str, None] = {}
    for path in recipes:
        recipe = yaml.safe_load(path.read_text())
        for key in ("model", "network", "init_args"):
            recipe = recipe.get(key) if isinstance(recipe, dict) else None
        given |= dict.fromkeys(recipe or {})
    return [name for name in given if name not in network["init_args"]]
