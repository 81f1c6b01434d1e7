"""Expressions of a recipe: checked before any data is read, evaluated by whichever engine runs."""

from __future__ import annotations

from collections.abc import Mapping

import ibis.expr.types as ir
import sqlglot
from ibis import util
from sqlglot import expressions as sg

from data_prep.recipe_sources import Value

DIALECT = "duckdb"


def sql_of(value: Value) -> str:
    """SQL of a value: its expression, or its quoted column."""
    return value.expression if value.expression is not None else sg.column(str(value.column), quoted=True).sql(DIALECT)


def columns_of(expression: str, where: str) -> set[str]:
    """Columns that an expression reads.

    Raises:
        ValueError: when it is not one SQL expression; the message names ``where``.
    """
    try:
        tree = sqlglot.parse_one(expression, dialect=DIALECT)
    except sqlglot.errors.SqlglotError as error:
        details = getattr(error, "errors", None)
        reason = details[0]["description"].rstrip(".") if details else str(error).split("\n")[0]
        raise ValueError(f"{where}: {expression!r} is not an SQL expression ({reason})") from None
    if tree.find(sg.Query, sg.DDL, sg.Command) is not None:
        raise ValueError(f"{where}: {expression!r} is a statement; expected an expression over columns of one table")
    return {column.name for column in tree.find_all(sg.Column)}


def add_columns(table: ir.Table, expressions: Mapping[str, str]) -> ir.Table:
    """The table with one more column per expression, under the given names."""
    if not expressions:
        return table
    added = [f"({sql}) AS {sg.to_identifier(name, quoted=True).sql(DIALECT)}" for name, sql in expressions.items()]
    name = util.gen_name("rows")
    return table.alias(name).sql(f"SELECT *, {', '.join(added)} FROM {name}", dialect=DIALECT)
