"""No feature may be computed from the future: a row sees only rows before it.

An expression without a window looks at its own row alone. One with a window is judged by what SQL says it reads, before
any data is: the rows must rise by the timestamp, and end where the feature may see. Conditions that only choose rows
(``target.where``, ``history.where``) may look anywhere.
"""

from __future__ import annotations

import sqlglot
from sqlglot import expressions as sg

from data_prep.expressions import DIALECT, sql_of
from data_prep.recipe import Recipe

RANKS = (sg.RowNumber, sg.Rank, sg.DenseRank, sg.Lag)
"""Read earlier rows only, whatever the frame."""


def refuse_future(recipe: Recipe) -> None:
    """Refuse features that look at later rows or, where a sample is scored with them, at their own outcome.

    Raises:
        ValueError: on the first such feature.
    """
    expressions = {f"context.{name}": (sql_of(feature), True) for name, feature in recipe.context.items()}
    expressions |= {f"event_side.{name}": (sql_of(feature), False) for name, feature in recipe.event_side.items()}
    for log in recipe.log:
        expressions |= {f"log.values.{name}": (sql, True) for name, sql in log.values.items()}
    for where, (sql, strict) in expressions.items():
        if fault := future_of(sql, recipe.timestamp.column, strict):
            raise ValueError(
                f"`{where}` is computed from the future: {fault}; an expression may read earlier rows only"
            )


def future_of(sql: str, time: str | None, strict: bool) -> str | None:
    """What an expression reads that it must not, in words; None when nothing.

    Args:
        sql: the expression.
        time: column of the timestamp, which the rows of a window must rise by; None when it is computed.
        strict: refuse the row itself too, whose label is not known when the sample is scored.
    """
    for window in sqlglot.parse_one(sql, dialect=DIALECT).find_all(sg.Window):
        if fault := _fault(window, time, strict):
            return f"{window.sql(DIALECT)} {fault}"
    return None


def _fault(window: sg.Window, time: str | None, strict: bool) -> str | None:
    order = window.args.get("order")
    if order is None:
        return "has no ORDER BY and so reads all rows"
    first = order.expressions[0]
    if first.args.get("desc"):
        return "goes backwards in time (DESC)"
    if time is not None and not (isinstance(first.this, sg.Column) and first.this.name in (time, "log_row")):
        return f"is not in the order of {time}"
    function = window.this.this if isinstance(window.this, sg.IgnoreNulls) else window.this
    if isinstance(function, sg.Lag):
        offset = function.args.get("offset")
        ahead = offset is not None and not (isinstance(offset, sg.Literal) and offset.is_int)
        return "has an offset that reads ahead" if ahead else None
    if isinstance(function, RANKS):
        return None
    if isinstance(function, sg.Lead | sg.Ntile | sg.PercentRank | sg.CumeDist):
        return "reads later rows"
    return _frame_fault(window.args.get("spec"), strict)


def _frame_fault(spec: sg.WindowSpec | None, strict: bool) -> str | None:
    side = spec.args.get("end_side") if spec is not None else None
    if side == "FOLLOWING":
        return "has a frame that ends in later rows"
    if strict and side != "PRECEDING":
        return "has a frame that ends at the row itself, whose outcome is not known (end it at 1 PRECEDING)"
    return None  # an event's own moment is past for every sample that sees it
