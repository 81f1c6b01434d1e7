"""Which rows are train, validation and test samples."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from data_prep.recipe import Recipe
from data_prep.recipe_split import ByTime, ByValue, PerUser
from data_prep.row_columns import LOG_ROW

ROUNDING = 1e-9
"""0.29 * 100 is 28.999…: a share's count is rounded down only after adding this."""


def with_split(recipe: Recipe, accepted: ir.Table) -> ir.Table:
    """Accepted rows with ``split``: train, val, test, or null for a row that is no sample."""
    way = recipe.split.per_user or recipe.split.by_value or recipe.split.by_time
    if isinstance(way, PerUser):
        name = _per_user(way, accepted)
    elif isinstance(way, ByValue):
        value = accepted["$split"].cast("string")
        name = _cases(
            (value.isin(way.train), "train"), (value.isin(way.validation), "val"), (value.isin(way.test), "test")
        )
    else:
        assert isinstance(way, ByTime)
        name = _by_time(way, accepted["$timestamp"])
    return accepted.mutate(split=accepted["$target"].ifelse(name, ibis.null("string")))


def _per_user(way: PerUser, rows: ir.Table) -> ir.StringValue:
    """Ranks within a user's samples; other rows of the user are ranked apart and ignored."""
    group = [rows["$user"], rows["$target"]]
    rank = ibis.row_number().over(group_by=group, order_by=[rows["$timestamp"], rows[LOG_ROW]])
    count = rows.count().over(group_by=group)
    test = (count * way.test + ROUNDING).floor()
    held_out = test + (count * way.validation + ROUNDING).floor()
    return _cases((rank >= count - test, "test"), (rank >= count - held_out, "val"), (ibis.literal(True), "train"))


def _by_time(way: ByTime, time: ir.Column) -> ir.StringValue:
    within = ibis.literal(True) if way.end is None else time < way.end
    return _cases((time < way.validation, "train"), (time < way.test, "val"), (within, "test"))


def _cases(*branches: tuple[ir.BooleanValue, str]) -> ir.StringValue:
    return ibis.cases(*((condition, ibis.literal(name)) for condition, name in branches), else_=ibis.null("string"))
