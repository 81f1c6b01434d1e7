"""Negatives drawn for a log of clicks, by hashes: the same whatever the engine and its threads.

A draw is a place in a numbered list of candidates. For ``uniform`` the list holds each clicked item once; otherwise it
holds the clicks in the order of time, so that a random place is an item in proportion to its clicks, and the clicks of
a time window are a range of places.
"""

from __future__ import annotations

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from data_prep.engine import Engine
from data_prep.hashing import hash_number
from data_prep.recipe_rows import Negatives
from data_prep.row_columns import LOG_ROW

ATTEMPT, PLACE, FIRST, CHOICES, COUNT = "$attempt", "$place", "$first", "$choices", "$count"


def attempts_of(rule: Negatives) -> int:
    """Draws per click, of which the first distinct and fit ones become negatives."""
    return 2 * rule.per_positive + 10


def with_negatives(engine: Engine, rule: Negatives, rows: ir.Table) -> ir.Table:
    """Accepted rows and their negatives, with ``$negative`` and ``$log_q``; ``log_row`` is stretched to stay unique."""
    rows = engine.store("before_negatives", rows)
    clicks = rows.filter(rows["$label"] == 1)
    moments = _moments(rule, clicks)
    draws = _draws(engine, rule, clicks, moments)
    chosen = engine.store("negatives", _choose(rule, draws, clicks))
    stretch = attempts_of(rule) + 1
    own = rows.mutate(**{"$negative": ibis.literal(False), ATTEMPT: ibis.literal(0, "int64")})
    origin = rows.rename({"$origin": LOG_ROW}).drop("$item")
    copied = chosen.join(origin, chosen[LOG_ROW] == origin["$origin"]).drop("$origin")
    drawn = copied.mutate(
        **{
            "$negative": ibis.literal(True),
            "$label": ibis.literal(0, "int8"),
            "$history": ibis.literal(False),
            ATTEMPT: copied[ATTEMPT] + 1,
        }
    ).select(*own.columns)
    both = ibis.union(own, drawn)
    both = both.mutate(**{LOG_ROW: both[LOG_ROW] * stretch + both[ATTEMPT]}).drop(ATTEMPT)
    return _with_log_q(rule, engine.store("with_negatives", both), clicks)


def _moments(rule: Negatives, clicks: ir.Table) -> ir.Table | None:
    """Of each time of a click, the range of places of the clicks in the window before it."""
    if rule.window is None:
        return None
    counts = clicks.group_by("$timestamp").agg(**{COUNT: clicks.count()})
    time = counts["$timestamp"]
    earlier = counts[COUNT].sum().over(ibis.window(preceding=(None, 1), order_by=time)).coalesce(0)
    recent = counts[COUNT].sum().over(ibis.range_window(preceding=(rule.window, 1), order_by=time)).coalesce(0)
    return counts.select("$timestamp", **{FIRST: (earlier - recent).cast("int64"), CHOICES: recent.cast("int64")})


def _draws(engine: Engine, rule: Negatives, clicks: ir.Table, moments: ir.Table | None) -> ir.Table:
    """Per sample with label 1 and attempt, the drawn item."""
    keys = ["$item"] if rule.by == "uniform" else ["$timestamp", LOG_ROW]
    listed = clicks.select("$item").distinct() if rule.by == "uniform" else clicks.select("$item", *keys)
    pool = engine.store_ordered("negative_pool", listed, keys, PLACE, 0).select("$item", PLACE)
    attempts = engine.literal_table("attempts", pa.table({ATTEMPT: pa.array(range(attempts_of(rule)), pa.int64())}))
    wanted = clicks.filter(clicks["$target"]).select(LOG_ROW, "$user", "$timestamp")
    if moments is not None:
        ranged = wanted.join(moments, "$timestamp")
        ranged = ranged.filter(ranged[CHOICES] > 0)
    else:
        size = int(pool.count().to_pyarrow().as_py())
        ranged = wanted.mutate(**{FIRST: ibis.literal(0, "int64"), CHOICES: ibis.literal(max(size, 1), "int64")})
    crossed = ranged.cross_join(attempts)
    number = hash_number(ibis.literal(rule.seed), crossed[LOG_ROW], crossed[ATTEMPT])
    placed = crossed.mutate(**{PLACE: (crossed[FIRST] + number % crossed[CHOICES]).cast("int64")})
    return placed.join(pool, PLACE).select(LOG_ROW, "$user", "$timestamp", ATTEMPT, "$item")


def _choose(rule: Negatives, draws: ir.Table, clicks: ir.Table) -> ir.Table:
    """The first distinct items per click that its user did not click at that moment: ``log_row``, attempt, item.

    An item drawn for two clicks of one moment goes to the first, so that no two samples are the same.
    """
    copy = ibis.row_number().over(
        group_by=[draws["$user"], draws["$timestamp"], draws["$item"]], order_by=[draws[LOG_ROW], draws[ATTEMPT]]
    )
    numbered = draws.mutate(**{"$copy": copy})
    distinct = numbered.filter(numbered["$copy"] == 0)
    clicked = clicks.select("$user", "$timestamp", "$item").distinct()
    fit = distinct.anti_join(clicked, ["$user", "$timestamp", "$item"])
    rank = ibis.row_number().over(group_by=fit[LOG_ROW], order_by=fit[ATTEMPT])
    ranked = fit.mutate(**{"$rank": rank})
    return ranked.filter(ranked["$rank"] < rule.per_positive).select(LOG_ROW, ATTEMPT, "$item")


def _with_log_q(rule: Negatives, rows: ir.Table, clicks: ir.Table) -> ir.Table:
    """The logarithm of the chance that one draw at the row's time gives the row's item; null where it is none."""
    own = (~rows["$negative"] & (rows["$label"] == 1)).cast("int64")
    if rule.by == "uniform":
        items = clicks.select(**{"$count_items": clicks["$item"]}).aggregate(
            **{CHOICES: lambda table: table["$count_items"].nunique()}
        )
        size = int(items.to_pyarrow()[CHOICES][0].as_py())
        return rows.mutate(**{"$log_q": (ibis.literal(1.0) / size).ln().cast("float32")})
    if rule.window is None:
        window, everything = ibis.window(group_by=rows["$item"]), int(clicks.count().to_pyarrow().as_py())
        chance = own.sum().over(window).cast("float64") / everything
        return rows.mutate(**{"$log_q": _log(chance)})
    # A row's own time may be that of no other click: the count of its range is looked up, not summed over rows.
    moments = _moments(rule, clicks)
    assert moments is not None
    of_item = ibis.range_window(preceding=(rule.window, 1), group_by=rows["$item"], order_by=rows["$timestamp"])
    counted = rows.mutate(**{COUNT: own.sum().over(of_item).coalesce(0)})
    spans = moments.select(**{"$moment": moments["$timestamp"], CHOICES: moments[CHOICES]})
    joined = counted.left_join(spans, counted["$timestamp"] == spans["$moment"])
    chance = (joined[CHOICES] > 0).ifelse(joined[COUNT].cast("float64") / joined[CHOICES], ibis.null("float64"))
    return joined.mutate(**{"$log_q": _log(chance)}).drop("$moment", CHOICES, COUNT)


def _log(chance: ir.FloatingColumn) -> ir.FloatingColumn:
    """Single precision: the last digits of a logarithm differ between engines."""
    return (chance > 0).ifelse(chance, ibis.null("float64")).ln().cast("float32")
