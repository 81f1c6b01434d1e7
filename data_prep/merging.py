"""Several logs as one: their columns brought under the same names, and rows numbered across all of them."""

from __future__ import annotations

from pathlib import Path

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
from ibis.common.exceptions import IbisError

from data_prep.engine import Engine
from data_prep.expressions import add_columns, columns_of
from data_prep.file_checks import column_names
from data_prep.recipe_sources import Log
from data_prep.row_columns import CELL, LOG_FIRST, LOG_ROW, UNPARSED
from data_prep.sources import read_source

LOG_NAME = "log_name"
"""Column with the name of the log that a row comes from."""
POSITION = "position"
"""Column with the place of an exploded element in its list."""
LIST_ROW = "list_row"
"""Column with the row in the log, from 0, whose list an exploded element stands in."""
LONGEST_LIST = 1 << 20
"""Rows of an exploded list are numbered from (its row times this), so that no row depends on another's length."""
OWN = (LOG_ROW, LOG_NAME)
EXPLODED = {POSITION, LIST_ROW}


def read_logs(engine: Engine, logs: list[Log], raw: Path, used: set[str]) -> ir.Table:
    """Table of the ``used`` columns, ``log_row``, ``log_name``, ``$unparsed`` and ``$cell`` over all logs.

    Where there are several, ``$first`` is the first ``log_row`` of a row's own log.

    Raises:
        ValueError: when no log has a column, or logs disagree on its type, besides what reading may find wrong.
    """
    wanted = sorted(used - set(OWN))
    known = [set(column_names(log, raw)) | set(log.values) | (EXPLODED if log.explode else set()) for log in logs]
    if len(logs) > 1 and (absent := [name for name in wanted if not any(name in names for names in known)]):
        listed = "; ".join(f"{log.name} has {', '.join(sorted(names))}" for log, names in zip(logs, known, strict=True))
        raise ValueError(f"no log has a column {absent[0]!r}: {listed}")
    tables, first = [], 0
    for log, names in zip(logs, known, strict=True):
        present = [name for name in wanted if name in names or len(logs) == 1]
        what = "the log" if log.name is None else f"the log {log.name!r}"
        table = _read(engine, log, raw, present, what).mutate(**{LOG_NAME: ibis.literal(log.name, "string")})
        if len(logs) > 1:
            rows = int(table.count().to_pyarrow().as_py())
            table = table.mutate(**{LOG_ROW: table[LOG_ROW] + first, LOG_FIRST: ibis.literal(first, "int64")})
            first += rows * (LONGEST_LIST if log.explode else 1)
        tables.append(table)
    if len(tables) == 1:
        return tables[0]
    types = {name: _common_type(name, logs, tables) for name in wanted}
    aligned = [_align(table, types) for table in tables]
    return ibis.union(*aligned)


def _read(engine: Engine, log: Log, raw: Path, present: list[str], what: str) -> ir.Table:
    computed = {name: log.values[name] for name in present if name in log.values}
    plain = {name for name in present if name not in computed}
    needed = plain.union(*(columns_of(sql, f"`values.{name}` of {what}") for name, sql in computed.items()))
    if log.explode:
        needed = (needed - EXPLODED) | set(log.explode)
    table = read_source(engine, log, raw, needed - set(OWN), what)
    if log.explode:
        table = _explode(table, log, what)
    if not computed:
        return table
    # A computed column may bear the name of one that it reads.
    added = add_columns(table, {f"$value:{name}": sql for name, sql in computed.items()})
    kept = [added[name] for name in (*sorted(plain), LOG_ROW, UNPARSED, CELL)]
    return added.select(*kept, **{name: added[f"$value:{name}"] for name in computed})


def _explode(table: ir.Table, log: Log, what: str) -> ir.Table:
    """One row per element of the lists, numbered anew; a row whose lists are empty or null goes."""
    for name in log.explode:
        if not table[name].type().is_array():
            kind = table[name].type()
            raise ValueError(f"`explode` of {what} names column {name!r} of type {kind}; expected lists")
    lengths = [table[name].length().coalesce(0) for name in log.explode]
    places = ibis.range(ibis.greatest(*lengths))
    rest = [name for name in table.columns if name not in log.explode]
    lists = {f"$list:{name}": table[name] for name in log.explode}
    longer = table.select(*rest, **lists, **{POSITION: places.unnest().cast("int64")})
    elements = {name: longer[f"$list:{name}"][longer[POSITION]] for name in log.explode}
    rows = longer.select(*rest, POSITION, **elements)
    return rows.mutate(**{LIST_ROW: rows[LOG_ROW], LOG_ROW: rows[LOG_ROW] * LONGEST_LIST + rows[POSITION]})


def _common_type(name: str, logs: list[Log], tables: list[ir.Table]) -> dt.DataType:
    kinds = {
        str(log.name): table[name].type() for log, table in zip(logs, tables, strict=True) if name in table.columns
    }
    distinct = [kind for kind in kinds.values() if not kind.is_null()]
    try:
        if len({kind.is_string() for kind in distinct}) > 1:
            raise IbisError
        return dt.highest_precedence(distinct) if distinct else dt.string
    except IbisError:
        seen = ", ".join(f"{kind} in {log}" for log, kind in kinds.items())
        cure = "give it one type in `types`, or by CAST in the `values` of a log"
        raise ValueError(f"column {name!r} has different types in the logs ({seen}); {cure}") from None


def _align(table: ir.Table, types: dict[str, dt.DataType]) -> ir.Table:
    columns = {
        name: table[name].cast(kind) if name in table.columns else ibis.null(kind) for name, kind in types.items()
    }
    return table.select(**columns, **{name: table[name] for name in (LOG_ROW, LOG_NAME, LOG_FIRST, UNPARSED, CELL)})
