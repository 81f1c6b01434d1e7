"""Raw files -> a table of the engine, with typed columns, the log row, and what could not be parsed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.engine import Engine
from data_prep.file_checks import check_files, find_files, format_of
from data_prep.recipe_sources import Source
from data_prep.row_columns import CELL, LOG_ROW, UNPARSED

UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32())


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


def read_source(engine: Engine, source: Source, raw: Path, used: set[str], what: str) -> ir.Table:
    """Table of the ``used`` columns, ``log_row`` and ``unparsed``.

    Raises:
        ValueError: on a missing file or column, a file that cannot be read, or a text column without a type.
    """
    files = find_files(source, raw)
    check_files(source, files, used)
    if format_of(source, files[0]) == "parquet":
        table = _read_parquet(engine, files, used)
    else:
        table = engine.read_text(source, files, used, what)
    # A float column writes "missing" as NaN, which SQL takes for a number above all others.
    floats = {
        name: table[name].isnan().ifelse(ibis.null(), table[name]) for name in used if table[name].type().is_floating()
    }
    return table.mutate(**floats) if floats else table


def _read_parquet(engine: Engine, files: list[Path], used: set[str]) -> ir.Table:
    schema = pq.read_schema(files[0])
    table = engine.read_parquet(files, used)
    nothing = {UNPARSED: ibis.null("string"), CELL: ibis.null("string")}
    # Not every engine has unsigned numbers, and each takes them for another type.
    unsigned = [name for name in used if schema.field(name).type in UNSIGNED]
    signed = {name: table[name].cast("int64") for name in unsigned}
    return table.select(*sorted(used), LOG_ROW).mutate(**signed, **nothing)
