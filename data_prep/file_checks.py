"""What a file says of itself before an engine reads it: columns, separators, encoding, and whether files agree."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from data_prep.file_gaps import tell_gaps
from data_prep.recipe_sources import Source

COMPRESSED = (".gz", ".zst")
SEPARATORS = {"a comma": ",", "a tab": "\t", "a semicolon": ";", "a bar": "|", "a double colon": "::"}
JSON_LINES = 1000
"""Lines of a JSON lines file whose keys are taken for its columns."""
PIECE = 1 << 24
CURE = "fetch or write it again"


def find_files(source: Source, raw: Path) -> list[Path]:
    """Files of a source in reading order.

    Raises:
        ValueError: when a path or glob matches nothing.
    """
    found: list[Path] = []
    for pattern in source.files:
        matches = sorted(path for path in raw.glob(pattern) if not path.is_dir())
        if gone := next((path for path in matches if not path.exists()), None):
            raise ValueError(f"{gone} is a link to a file that is missing; {CURE}")
        if not matches:
            near = sorted(path.name for path in raw.iterdir())[:5] if raw.is_dir() else []
            there = f", which holds {', '.join(near)}" if near else ""
            raise ValueError(f"no file {pattern!r} in {raw}{there}; check --raw and `files` in the recipe")
        found += [path for path in matches if path not in found]
    return found


def format_of(source: Source, first: Path) -> str:
    """``parquet``, ``csv``, ``tsv`` or ``jsonl``."""
    if source.format != "auto":
        return source.format
    suffix = Path(first.stem).suffix if first.suffix in COMPRESSED else first.suffix
    return {".parquet": "parquet", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}.get(suffix, "csv")


def separator_of(source: Source, first: Path) -> str:
    """What stands between the columns of a text."""
    return source.delimiter or ("\t" if format_of(source, first) == "tsv" else ",")


def column_names(source: Source, raw: Path) -> list[str]:
    """Columns of a source by its first file.

    Raises:
        ValueError: when the file is missing, empty or cannot be read.
    """
    return _names(source, find_files(source, raw)[0])


def check_files(source: Source, files: list[Path], used: set[str]) -> None:
    """Look at every file before any is read.

    Raises:
        ValueError: on an empty or damaged file, a missing column, columns or types that change between files, a wrong
            separator, and text of another encoding, naming file, line and column.
    """
    kind = format_of(source, files[0])
    tell_gaps(files)
    for path in files:
        names = _names(source, path)
        if kind != "jsonl":  # an object may lack a key
            _require(source, used, names, path)
    if kind == "parquet":
        _check_types(files, used)
        return
    for path in files:
        _check_encoding(source, path)
    if kind == "jsonl" or source.columns is not None:
        return
    first = _names(source, files[0])
    for path in files[1:]:
        if (names := _names(source, path)) != first:
            cure = "make them one layout, or give them as two sources of `log`"
            raise ValueError(f"{path} has columns {', '.join(names)} and {files[0]} {', '.join(first)}; {cure}")


def _names(source: Source, path: Path) -> list[str]:
    kind = format_of(source, path)
    if kind == "parquet":
        return _parquet_schema(path).names
    if kind == "jsonl":
        return _json_names(source, path)
    line = _first_lines(source, path, 1)[0]
    cells = split_line(line, separator_of(source, path), source.quote)
    if source.columns is None:
        return cells
    if len(cells) != len(source.columns):
        wrong = f"{path} line 1 has {len(cells)} columns and `columns` names {len(source.columns)}"
        raise ValueError(f"{wrong}; {_separator_hint(line, len(cells)) or 'correct `columns` or `delimiter`'}")
    return source.columns


def split_line(line: str, separator: str, quote: str) -> list[str]:
    """Cells of one line of a text table."""
    if len(separator) > 1:
        return line.split(separator)
    quoting: dict[str, Any] = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    return next(csv.reader([line], delimiter=separator, **quoting), [""])


def _require(source: Source, used: set[str], names: list[str], path: Path) -> None:
    absent = sorted(used - set(names))
    if not absent:
        return
    if len(names) == 1 and (hint := _separator_hint(names[0], 1)):
        raise ValueError(f"{path} has only one column, {names[0]!r}; {hint}")
    raise ValueError(f"{path} has no column {absent[0]!r}; it has {', '.join(names)}")


def _separator_hint(line: str, found: int) -> str | None:
    parts = {name: line.count(separator) + 1 for name, separator in SEPARATORS.items()}
    likely = max(parts, key=lambda name: parts[name])
    if parts[likely] <= found:
        return None
    return f"it seems to be separated by {likely}, so set `delimiter: {json.dumps(SEPARATORS[likely])}` in the recipe"


def _parquet_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ValueError(f"{path} cannot be read as Parquet ({reason}); {CURE}") from None


def _check_types(files: list[Path], used: set[str]) -> None:
    first = _parquet_schema(files[0])
    for path in files[1:]:
        schema = _parquet_schema(path)
        for name in sorted(used):
            if (here := schema.field(name).type) != (there := first.field(name).type):
                cure = "write both with one type, or give them as two sources of `log` with a CAST in `values`"
                raise ValueError(f"column {name!r} is {there} in {files[0]} and {here} in {path}; {cure}")


def open_text(path: Path) -> BinaryIO | gzip.GzipFile:
    """The bytes of a text, decompressed by the file's suffix."""
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        return io.BufferedReader(zstandard.open(path))  # the bare reader knows no lines
    return path.open("rb")


def _first_lines(source: Source, path: Path, count: int) -> list[str]:
    """Raises ValueError when there is none."""
    lines: list[str] = []
    try:
        with open_text(path) as file:
            if source.encoding == "utf-16":  # a line's end is no single byte
                lines = [line.rstrip("\r\n") for line in islice(io.TextIOWrapper(file, source.encoding), count)]
            else:
                for line in islice(file, count):
                    lines.append(line.rstrip(b"\r\n").decode(source.encoding).removeprefix("\ufeff"))
    except UnicodeError as error:
        raise ValueError(_encoding_fault(source, path, len(lines) + 1, error)) from None
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {CURE}") from None
    if not lines or lines == [""]:
        raise ValueError(f"{path} is empty; {CURE}, or leave it out of `files`")
    return lines


def _json_names(source: Source, path: Path) -> list[str]:
    names: dict[str, None] = {}
    for number, line in enumerate(_first_lines(source, path, JSON_LINES), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {number} is not JSON ({error.msg}); expected one object a line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number} is no JSON object but {line[:40]!r}; expected one object a line")
        names |= dict.fromkeys(row)
    return list(names)


def _check_encoding(source: Source, path: Path) -> None:
    """Decode all of it: engines report a stray byte late, by place in a buffer, or not at all."""
    if source.encoding == "latin-1":
        return  # any byte is a letter of Latin-1
    line = 1
    decoder = codecs.getincrementaldecoder(source.encoding)()
    try:
        with open_text(path) as file:
            while piece := file.read(PIECE):
                if source.encoding == "utf-8" and piece.isascii() and not decoder.getstate()[0]:
                    line += piece.count(b"\n")
                else:
                    line += decoder.decode(piece).count("\n")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # The decoder may hold the beginning of a letter back, so lines are counted in what it was given.
        raise ValueError(
            _encoding_fault(source, path, line + error.object[: error.start].count(b"\n"), error)
        ) from None
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"{path} cannot be read to its end ({error}); {CURE}") from None


def _encoding_fault(source: Source, path: Path, line: int, error: UnicodeError) -> str:
    reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
    cure = "set `encoding` to utf-8, latin-1 or utf-16, and give files of different encodings as sources of their own"
    return f"{path} line {line} is not {source.encoding} ({reason}); {cure}"
