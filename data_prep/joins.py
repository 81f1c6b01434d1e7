"""Tables looked up for each row of the log: one row per key, or the row that held just before the log's time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import ibis
import ibis.expr.types as ir

from data_prep.engine import Engine
from data_prep.expressions import add_columns, columns_of, sql_of
from data_prep.file_places import place_in
from data_prep.recipe_sources import Join, Source
from data_prep.row_columns import LOG_ROW, UNPARSED
from data_prep.sources import read_source
from data_prep.timestamps import with_ticks

KEY, FROM, UNTIL, ON = "$key", "$from", "$until", "$on"


def look_up(engine: Engine, name: str, join: Join, raw: Path, log: ir.Table) -> ir.Table:
    """The log, which has ``$timestamp``, with one more column per entry of ``join.values``.

    Raises:
        ValueError: on a table that cannot be read, unfit rows, repeated keys, or keys of another type than the log's.
    """
    what = f"the table {name!r} of `joins`"
    table = _read(engine, name, join, raw, what)
    keyed = add_columns(log, {ON: sql_of(join.on)})
    if (here := keyed[ON].type()).is_string() != (there := table[KEY].type()).is_string():
        cure = "give both one type in `types` or by CAST"
        raise ValueError(f"{what} is found by a key of type {there}, but `on` has type {here} in the log; {cure}")
    # Parameters of a join must not bear names of the log.
    found = table.select(KEY, *_spans(join), **{f"$found:{value}": table[_value(value)] for value in join.values})
    conditions = [keyed[ON] == found[KEY]]
    if join.valid_from is not None:
        time = keyed["$timestamp"].cast("int64")
        conditions += [time > found[FROM], found[UNTIL].isnull() | (time <= found[UNTIL])]
    joined = keyed.left_join(found, conditions)
    kept = [joined[column] for column in log.columns]
    return joined.select(*kept, **{value: joined[f"$found:{value}"] for value in join.values})


def _value(name: str) -> str:
    return f"$value:{name}"


def _spans(join: Join) -> list[str]:
    return [] if join.valid_from is None else [FROM, UNTIL]


def _read(engine: Engine, name: str, join: Join, raw: Path, what: str) -> ir.Table:
    values = {_value(value): sql for value, sql in join.values.items()} | {KEY: sql_of(join.key)}
    used = set().union(*(columns_of(sql, f"{what}, {value}") for value, sql in values.items()))
    if join.valid_from is not None:
        used |= columns_of(sql_of(join.valid_from), f"{what}, valid_from")
    table = add_columns(read_source(engine, join.source, raw, used, what), values)
    if join.valid_from is not None:
        table = with_ticks(table, join.valid_from, FROM)
    stored = engine.store(f"join_{name}", table)
    needed = [KEY, *_spans(join)[:1]]
    refuse_unfit(stored, needed, join.source, raw, what)
    unique = one_per_key(stored, needed, join.keep, what)
    if join.valid_from is None:
        return unique
    following = unique[FROM].lead().over(group_by=unique[KEY], order_by=unique[FROM])
    return unique.mutate(**{UNTIL: following})


def refuse_unfit(table: ir.Table, needed: Sequence[str], source: Source, raw: Path, what: str) -> None:
    """Refuse a side table with cells that do not parse, or rows without key or time.

    Raises:
        ValueError: naming the first such row's file and line.
    """
    missing = ibis.or_(*(table[name].isnull() for name in needed))
    bad = table.filter(table[UNPARSED].notnull() | missing).order_by(LOG_ROW).limit(1).to_pyarrow().to_pylist()
    if bad:
        reason = bad[0][UNPARSED] or "it has no key" + (" or no time" if FROM in needed else "")
        place = place_in(source, raw, bad[0][LOG_ROW])
        raise ValueError(f"{place} of {what} is unfit: {reason}; correct the file or `types` in the recipe")


def one_per_key(table: ir.Table, keys: Sequence[str], keep: Literal["first", "last"] | None, what: str) -> ir.Table:
    """The rows of a side table, one for each value of ``keys``.

    Raises:
        ValueError: when a key stands twice and ``keep`` does not say which row counts.
    """
    if keep is not None:
        order = table[LOG_ROW].desc() if keep == "last" else table[LOG_ROW]
        rank = ibis.row_number().over(group_by=[table[key] for key in keys], order_by=order)
        ranked = table.mutate(**{"$rank": rank})
        return ranked.filter(ranked["$rank"] == 0).drop("$rank")
    counts = table.group_by(*keys).agg(**{"$rows": table.count()})
    repeated = counts.filter(counts["$rows"] > 1).order_by(*keys).limit(1).to_pyarrow().to_pylist()
    if repeated:
        shown = " at ".join(repr(repeated[0][key]) for key in keys)
        cure = "keep one row for each, or set `keep: last` or `keep: first`"
        raise ValueError(f"{shown} stands {repeated[0]['$rows']} times in {what}; {cure}")
    return table
