"""Text files -> typed columns, read by DuckDB whichever engine runs: workers of Spark convert files with this too."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from data_prep.file_checks import format_of, separator_of
from data_prep.recipe_sources import Source
from data_prep.row_columns import CELL, UNPARSED

TYPES = ("string", "int64", "float64")
WHOLE_NUMBER = r"^\s*[+-]?[0-9]+(\.0*)?\s*$"


def text_table(
    con: ibis.backends.duckdb.Backend, source: Source, files: Sequence[Path], used: set[str], what: str
) -> ir.Table:
    """The ``used`` columns with their types, rows in file order, and what could not be parsed.

    Raises:
        ValueError: when a column is absent or has no type or an unknown one.
    """
    if wrong := sorted(set(source.types.values()) - set(TYPES)):
        raise ValueError(f"{what} gives a column the type {wrong[0]!r}; expected one of {', '.join(TYPES)}")
    if untyped := sorted(used - set(source.types)):
        raise ValueError(
            f"{what} is text and column {untyped[0]!r} has no type; add it to `types`: one of {', '.join(TYPES)}"
        )
    paths = [os.fspath(path) for path in files]
    if format_of(source, files[0]) == "jsonl":
        table = con.read_json(paths, columns=dict.fromkeys(sorted(used), "VARCHAR"), format="newline_delimited")
    else:
        table = con.read_csv(paths, **_csv_options(source, files[0]))
    return _parse(table.select(*sorted(used)), {name: source.types[name] for name in sorted(used)})


def _csv_options(source: Source, first: Path) -> dict[str, Any]:
    options: dict[str, Any] = {
        "delim": separator_of(source, first),
        "quote": source.quote,
        "escape": source.quote,
        "encoding": source.encoding,
        "header": source.columns is None,
        "all_varchar": True,
    }
    return options if source.columns is None else options | {"names": source.columns}


def _parse(text: ir.Table, types: dict[str, str]) -> ir.Table:
    """Cells as numbers, and of each row the first cell that is none."""
    parsed, complaints, cells = {}, [ibis.null("string")], [ibis.null("string")]
    for name, kind in types.items():
        cell = text[name].nullif("")
        if kind == "string":
            parsed[name] = cell
            continue
        number = cell.try_cast(kind)
        if kind == "int64":  # a cast alone would round 1.7 to 2
            number = cell.re_search(WHOLE_NUMBER).ifelse(number, ibis.null())
        parsed[name] = number
        bad = cell.notnull() & number.isnull()
        said = ibis.literal(f"column {name} is not {'a whole number' if kind == 'int64' else 'a number'}")
        if kind == "int64":
            large = f"column {name} is beyond int64, so give it the type string"
            said = cell.re_search(WHOLE_NUMBER).ifelse(ibis.literal(large), said)
        complaints.append(bad.ifelse(said, ibis.null("string")))
        cells.append(bad.ifelse(cell, ibis.null("string")))
    return text.select(**parsed, **{UNPARSED: ibis.coalesce(*complaints), CELL: ibis.coalesce(*cells)})
