"""Which rows are train, validation and test samples."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from data_prep.hashing import SPAN, hash_number
from data_prep.recipe import Recipe
from data_prep.recipe_rows import Downsample
from data_prep.recipe_split import ByTime, ByUserFold, ByValue, PerUser
from data_prep.row_columns import LOG_ROW
from data_prep.sampling import attempts_of

ROUNDING = 1e-9
"""0.29 * 100 is 28.999…: a share's count is rounded down only after adding this."""


def with_split(recipe: Recipe, accepted: ir.Table) -> ir.Table:
    """Accepted rows with ``split``: train, val, test, or null for a row that is no sample."""
    split = recipe.split
    way = split.per_user or split.by_value or split.by_time or split.by_user_fold
    if isinstance(way, PerUser):
        name = _per_user(way, accepted) if recipe.negatives is None else _per_user_of_clicks(way, recipe, accepted)
    elif isinstance(way, ByUserFold):
        fold = hash_number(ibis.literal(way.seed), accepted["$user"]) % way.folds
        name = _cases((fold.isin(way.validation), "val"), (fold.isin(way.test), "test"), (ibis.literal(True), "train"))
    elif isinstance(way, ByValue):
        value = accepted["$split"].cast("string")
        name = _cases(
            (value.isin(way.train), "train"), (value.isin(way.validation), "val"), (value.isin(way.test), "test")
        )
    else:
        assert isinstance(way, ByTime)
        name = _by_time(way, accepted["$timestamp"])
    named = accepted.mutate(split=accepted["$target"].ifelse(name, ibis.null("string")))
    return named if recipe.downsample is None else _downsampled(recipe.downsample, named)


def _downsampled(rule: Downsample, rows: ir.Table) -> ir.Table:
    """Samples that stay, with ``$weight``; a sample that goes may still be an event."""
    at_stake = rows["split"].isin(rule.splits).coalesce(False) & (rows["$label"] == 0)
    kept = hash_number(ibis.literal(rule.seed), rows[LOG_ROW]) < int(rule.keep * SPAN)
    weight = at_stake.ifelse(ibis.literal(1 / rule.keep), ibis.literal(1.0)).cast("float32")
    gone = at_stake & ~kept
    return rows.mutate(**{"split": gone.ifelse(ibis.null("string"), rows["split"]), "$weight": weight})


def _per_user(way: PerUser, rows: ir.Table) -> ir.StringValue:
    """Ranks within a user's samples; other rows of the user are ranked apart and ignored."""
    group = [rows["$user"], rows["$target"]]
    rank = ibis.row_number().over(group_by=group, order_by=[rows["$timestamp"], rows[LOG_ROW]])
    count = rows.count().over(group_by=group)
    test = (count * way.test + ROUNDING).floor()
    held_out = test + (count * way.validation + ROUNDING).floor()
    return _cases((rank >= count - test, "test"), (rank >= count - held_out, "val"), (ibis.literal(True), "train"))


def _per_user_of_clicks(way: PerUser, recipe: Recipe, rows: ir.Table) -> ir.StringValue:
    """As ``_per_user``, by clicks: a click and its drawn negatives stand in one split."""
    assert recipe.negatives is not None
    group = [rows["$user"], rows["$target"]]
    click = (rows[LOG_ROW] // (attempts_of(recipe.negatives) + 1)).cast("int64")
    rank = ibis.dense_rank().over(group_by=group, order_by=[rows["$timestamp"], click])
    count = (~rows["$negative"]).cast("int64").sum().over(group_by=group)
    test = (count * way.test + ROUNDING).floor()
    held_out = test + (count * way.validation + ROUNDING).floor()
    return _cases((rank >= count - test, "test"), (rank >= count - held_out, "val"), (ibis.literal(True), "train"))


def _by_time(way: ByTime, time: ir.Column) -> ir.StringValue:
    within = ibis.literal(True) if way.end is None else time < way.end
    return _cases((time < way.validation, "train"), (time < way.test, "val"), (within, "test"))


def _cases(*branches: tuple[ir.BooleanValue, str]) -> ir.StringValue:
    return ibis.cases(*((condition, ibis.literal(name)) for condition, name in branches), else_=ibis.null("string"))
