"""Rules over accepted rows: duplicates and users that are left out."""

from __future__ import annotations

import ibis.expr.types as ir

from data_prep.engine import Engine
from data_prep.recipe import Recipe
from data_prep.recipe_rows import Deduplicate, Users
from data_prep.row_columns import LOG_ROW


def follow_rules(engine: Engine, recipe: Recipe, rows: ir.Table) -> tuple[ir.Table, dict[str, int]]:
    """Accepted rows without duplicates, and then without users that have too few or too many events.

    Returns:
        The rows, and of each rule of the recipe how many it took out.
    """
    removed: dict[str, int] = {}
    if recipe.deduplicate is None and recipe.users is None:
        return rows, removed
    before = _count(rows)
    if recipe.deduplicate is not None:
        rows = engine.store("deduplicated", _without_duplicates(recipe.deduplicate, rows))
        removed["deduplicate"], before = before - (left := _count(rows)), left
    if recipe.users is not None:
        rows = engine.store("of_fit_users", _of_fit_users(recipe.users, rows))
        removed["users"] = before - _count(rows)
    return rows, removed


def _count(rows: ir.Table) -> int:
    return int(rows.count().to_pyarrow().as_py())


def _without_duplicates(rule: Deduplicate, rows: ir.Table) -> ir.Table:
    """Rows of a chain, each at most ``within`` after the one before, are one."""
    alike = [rows[f"${part}"] for part in rule.same]
    order = [rows["$timestamp"], rows[LOG_ROW]]
    time = rows["$timestamp"]
    if rule.keep == "first":
        distance = time - time.lag().over(group_by=alike, order_by=order)
    else:
        distance = time.lead().over(group_by=alike, order_by=order) - time
    kept = distance.isnull() if rule.within is None else distance.isnull() | (distance > rule.within)
    flagged = rows.mutate(**{"$kept": kept})
    return flagged.filter(flagged["$kept"]).drop("$kept")


def _of_fit_users(rule: Users, rows: ir.Table) -> ir.Table:
    events = rows["$history"].cast("int64").sum().over(group_by=rows["$user"])
    counted = rows.mutate(**{"$events": events})
    fit = counted["$events"] >= rule.min_events
    if rule.max_events is not None:
        fit &= counted["$events"] <= rule.max_events
    return counted.filter(fit).drop("$events")


def observed(rows: ir.Table) -> ir.Table:
    """Rows of the log itself, without drawn negatives."""
    return rows.filter(~rows["$negative"]) if "$negative" in rows.columns else rows
