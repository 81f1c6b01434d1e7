"""What became of every row that was read: for the report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_prep.intake import Intake
from data_prep.recipe import Recipe
from data_prep.rejection import Judgement
from data_prep.splits import with_split
from data_prep.writing import Coded


def count_rows(recipe: Recipe, judgement: Judgement, intake: Intake, coded: Coded) -> dict[str, Any]:
    """Rows by fate.

    Returns:
        ``read`` = ``accepted`` + the sum of ``rejected`` (reason -> rows) + the sum of ``removed`` (rule -> rows; there
        only with a rule that takes rows out). ``drawn``: negatives added, where the recipe draws some. ``thinned``:
        samples that ``downsample`` left out; their rows stay accepted, for they may be events.
    """
    removed = sum(intake.removed.values())
    found: dict[str, Any] = {
        "read": judgement.rows,
        "accepted": judgement.rows - judgement.refused - removed,
        "rejected": judgement.rejected,
    }
    if intake.removed:
        found["removed"] = intake.removed
    if recipe.negatives is not None:
        found["drawn"] = int(intake.accepted.filter(intake.accepted["$negative"]).count().to_pyarrow().as_py())
    if recipe.downsample is not None:
        whole = with_split(replace(recipe, downsample=None), intake.accepted)["split"]
        found["thinned"] = int(whole.count().to_pyarrow().as_py()) - sum(coded.samples.values())
    return found


def sum_rows(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Counts of a data set and of what is added to it."""
    found: dict[str, Any] = {}
    for key in {**old, **new}:
        if isinstance(old.get(key, new.get(key)), dict):
            one, other = old.get(key, {}), new.get(key, {})
            both = {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
            found[key] = dict(sorted(both.items(), key=lambda pair: (-pair[1], pair[0])))
        else:
            found[key] = old.get(key, 0) + new.get(key, 0)
    return found
