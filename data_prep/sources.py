"""Raw files -> a table of the engine, with typed columns, the log row, and what could not be parsed."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.recipe import Source

TYPES = ("string", "int64", "float64")
LOG_ROW = "log_row"
"""Column with a row's position in the log: files in sorted order, rows in file order."""
UNPARSED = "$unparsed"
"""Column that says which cell of a text row does not fit its type; null when all do."""
CELL = "$cell"
"""Column with the text of that cell."""
WHOLE_NUMBER = r"^\s*[+-]?[0-9]+(\.0*)?\s*$"


def resolve_raw(recipe_raw: str | None, given: Path | None, recipe_folder: Path) -> Path:
    """Folder of the raw files.

    Raises:
        ValueError: when none is named or it does not exist.
    """
    if given is None and recipe_raw is None:
        raise ValueError("the recipe names no raw folder; give --raw DIR with the files that it reads")
    if given is not None:
        folder = given
    elif str(recipe_raw).startswith("bundled:"):
        folder = Path(str(resources.files("data_prep"))) / "bundled" / str(recipe_raw).removeprefix("bundled:")
    else:
        folder = recipe_folder / str(recipe_raw)
    if not folder.is_dir():
        raise ValueError(f"raw folder {folder} does not exist; give --raw DIR with the files that the recipe reads")
    return folder


def find_files(source: Source, raw: Path) -> list[Path]:
    """Files of a source in reading order.

    Raises:
        ValueError: when a path or glob matches nothing.
    """
    found: list[Path] = []
    for pattern in source.files:
        matches = sorted(path for path in raw.glob(pattern) if path.is_file())
        if not matches:
            raise ValueError(f"no file {pattern!r} in {raw}; check --raw and `files` in the recipe")
        found += [path for path in matches if path not in found]
    return found


def read_source(con: ibis.BaseBackend, source: Source, raw: Path, used: set[str], what: str) -> ir.Table:
    """Table of the ``used`` columns, ``log_row`` and ``unparsed``.

    Raises:
        ValueError: on a missing file or column, a file that cannot be read, or a text column without a type.
    """
    files = find_files(source, raw)
    if _format(source, files[0]) == "parquet":
        table = _read_parquet(con, files, used)
    else:
        table = _read_text(con, source, files, used, what)
    numbered = table.mutate(**{LOG_ROW: ibis.row_number().cast("int64")})
    # A float column writes "missing" as NaN, which SQL takes for a number above all others.
    floats = {
        name: numbered[name].isnan().ifelse(ibis.null(), numbered[name])
        for name in used
        if numbered[name].type().is_floating()
    }
    return numbered.mutate(**floats) if floats else numbered


def _format(source: Source, first: Path) -> str:
    if source.format != "auto":
        return source.format
    return {".parquet": "parquet", ".tsv": "tsv"}.get(first.suffix, "csv")


def _read_parquet(con: ibis.BaseBackend, files: list[Path], used: set[str]) -> ir.Table:
    for path in files:
        try:
            names = pq.read_schema(path).names
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} cannot be read as Parquet ({_first(error)}); fetch or write it again") from None
        _require(used, names, path)
    table = con.read_parquet([os.fspath(path) for path in files])
    return table.select(*sorted(used)).mutate(**{UNPARSED: ibis.null("string"), CELL: ibis.null("string")})


def _read_text(con: ibis.BaseBackend, source: Source, files: list[Path], used: set[str], what: str) -> ir.Table:
    if wrong := sorted(set(source.types.values()) - set(TYPES)):
        raise ValueError(f"{what} gives a column the type {wrong[0]!r}; expected one of {', '.join(TYPES)}")
    if untyped := sorted(used - set(source.types)):
        raise ValueError(
            f"{what} is text and column {untyped[0]!r} has no type; add it to `types`: one of {', '.join(TYPES)}"
        )
    options: dict[str, Any] = {
        "delim": source.delimiter or ("\t" if _format(source, files[0]) == "tsv" else ","),
        "quote": source.quote,
        "escape": source.quote,
        "encoding": source.encoding,
        "header": source.columns is None,
        "all_varchar": True,
    }
    if source.columns is not None:
        options["names"] = source.columns
    table = con.read_csv([os.fspath(path) for path in files], **options)
    _require(used, table.columns, files[0])
    return _parse(table.select(*sorted(used)), {name: source.types[name] for name in sorted(used)})


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
        wanted = "a whole number" if kind == "int64" else "a number"
        bad = cell.notnull() & number.isnull()
        complaints.append(bad.ifelse(ibis.literal(f"column {name} is not {wanted}"), ibis.null("string")))
        cells.append(bad.ifelse(cell, ibis.null("string")))
    return text.select(**parsed, **{UNPARSED: ibis.coalesce(*complaints), CELL: ibis.coalesce(*cells)})


def _require(used: set[str], names: list[str] | tuple[str, ...], path: Path) -> None:
    if absent := sorted(used - set(names)):
        raise ValueError(f"{path} has no column {absent[0]!r}; it has {', '.join(names)}")


def _first(error: BaseException) -> str:
    return str(error).split("\n")[0].rstrip(".")
