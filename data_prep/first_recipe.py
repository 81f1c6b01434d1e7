"""``laser-prep init``: looks at a log and writes a first recipe, with the reason of each guess beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from data_prep.file_checks import SEPARATORS, column_names, find_files, format_of, open_text
from data_prep.recipe import RESERVED
from data_prep.recipe_sources import Source
from laser.schema import NO_TABLE_NAMES

SAMPLE_ROWS = 20_000
FEW_VALUES = 1000
"""A column with at most so many values in the sample is taken for a category."""
NAMES = {
    "user": ("user_?id|uid|user", "(student|visitor|member|reviewer|customer|account)(_?id)?"),
    "item": (
        "(click_|parent_)?(item|video|movie|article|product|asin|news)(_?id)?",
        "(ad|ad_?group|problem|song|track|photo|goods|doc)(_?id)?|[iv]id",
    ),
    "timestamp": (
        "(click_|event_)?time_?stamp|time|ts|time_?ms|unix.*|(impression|event|click)_?time|date_?time|created(_?at)?",
        "date|day|pos|order|step|sequence",
    ),
    "label": ("label|is_?click(ed)?|click(ed)?|clk", "correct|converted|purchased?|liked?|is_like"),
    "session": ("session(_?id)?|visit(_?id)?",),
    "request": ("(request|impression|page_?view)(_?id)?|search_?id",),
    "rating": ("rating|stars|score|overall",),
    "outcome": (
        ".*(rating|watch|view|play|dwell|duration|like|follow|comment|share|forward|correct|hate|stay|read).*",
    ),
}
"""Names of columns in lower case, the likeliest first."""
FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y/%m/%d %H:%M:%S", "%Y-%m-%d", "%Y%m%d", "%Y-%m-%d %H:%M:%S.%f")
DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000}
"""Ticks of a day."""
UNITS = (("s", 1e8, 1e11), ("ms", 1e11, 1e14), ("us", 1e14, 1e17))
"""Unit, and between which numbers a present-day time in it lies."""


@dataclass(frozen=True)
class Guess:
    """A part of the recipe and why."""

    lines: list[str]
    why: str

    def text(self) -> str:
        """YAML with its comment above."""
        return "\n".join([f"# {self.why}", *self.lines])


def first_recipe(files: Sequence[Path]) -> str:
    """YAML text of a first recipe for files of one layout in one folder.

    Raises:
        ValueError: when the files cannot be read, or no column looks like user, item or time.
    """
    folders = {path.resolve().parent for path in files}
    if len(folders) > 1:
        raise ValueError(f"the files lie in {len(folders)} folders; give files of one folder")
    raw = folders.pop()
    source = _source(raw, [path.name for path in files])
    sample = _sample(source, raw)
    taken: dict[str, str] = {}
    for part in ("user", "item", "timestamp"):
        taken[part] = _find(part, sample, set(taken.values()), files[0])
    label_column = _label_column(sample, set(taken.values()))
    timestamp, unit = _timestamp(sample, taken["timestamp"])
    label = _label(sample, label_column, unit)
    taken |= _visits(sample, set(taken.values()) | {label_column})
    side = _side_info(sample, taken, label_column)
    visits = [part for part in ("session", "request") if part in taken]
    guesses = [
        Guess([f"name: {re.sub(r'[^a-z0-9_]', '_', files[0].name.split('.')[0].lower())}"], "Choose a name."),
        Guess([f"raw: {_quoted(str(raw))}"], "Folder of the files; --raw overrides it."),
        _log(source, sample),
        _id("user", taken["user"], sample),
        _id("item", taken["item"], sample),
        timestamp,
        label,
        *(
            Guess([f"{part}: {{column: {_quoted(taken[part])}}}"], f"Named like a {part}; kept with samples.")
            for part in visits
        ),
        *side,
        Guess(
            ["split:", "  per_user: {validation: 0.1, test: 0.1}"],
            "Each user's last tenth tests. To cut at two points in time, write by_time: {validation: T1, test: T2}.",
        ),
    ]
    return f"# First recipe of laser-prep init, from {sample.num_rows} rows: read each comment.\n" + "\n".join(
        guess.text() for guess in guesses
    )


def _source(raw: Path, names: list[str]) -> Source:
    source = Source(files=names)
    first = find_files(source, raw)[0]
    if format_of(source, first) != "csv":
        return source
    with open_text(first) as file:
        header = file.readline().decode("utf-8-sig", "replace")
    counts = {separator: header.count(separator) for separator in SEPARATORS.values()}
    best = max(counts, key=lambda separator: counts[separator])
    return source if best == "," or not counts[best] else Source(files=names, delimiter=best)


def _sample(source: Source, raw: Path) -> pa.Table:
    files = find_files(source, raw)
    names = column_names(source, raw)
    path = os.fspath(files[0])
    con = duckdb.connect()
    kind = format_of(source, files[0])
    if kind == "parquet":
        rows = con.read_parquet(path)
    elif kind == "jsonl":
        rows = con.read_json(path, format="newline_delimited")
    else:
        rows = con.read_csv(path, delimiter=source.delimiter or ("\t" if kind == "tsv" else ","), header=True)
    sample = rows.limit(SAMPLE_ROWS).to_arrow_table()
    if sample.num_rows == 0:
        raise ValueError(f"{path} has columns {', '.join(names)} and no rows; give a file with rows")
    return sample


def _named(part: str, names: Sequence[str]) -> list[str]:
    """Names that look like ``part``, the likeliest first."""
    return [name for pattern in NAMES[part] for name in names if re.fullmatch(pattern, name.lower())]


def _find(part: str, sample: pa.Table, taken: set[str], path: Path) -> str:
    free = [name for name in sample.column_names if name not in taken]
    typed = [name for name in free if pa.types.is_temporal(sample.schema.field(name).type)]
    named = _named(part, free)
    if part == "timestamp" and typed and not named:
        return typed[0]
    if not named:
        listed = ", ".join(sample.column_names)
        raise ValueError(f"no column of {path} looks like the {part} (columns {listed}); write the recipe by hand")
    return named[0]


def _values(sample: pa.Table, name: str) -> set[Any]:
    return set(sample[name].drop_null().unique().to_pylist())


def _label_column(sample: pa.Table, taken: set[str]) -> str | None:
    free = [name for name in sample.column_names if name not in taken]
    answers = [name for name in _named("label", free) if _values(sample, name) <= {0, 1}]
    return next(iter([*answers, *_named("rating", free)]), None)


def _visits(sample: pa.Table, taken: set[str | None]) -> dict[str, str]:
    """Columns of ids of sessions and requests."""
    free = [name for name in sample.column_names if name not in taken]
    found = {part: next(iter(_named(part, free)), None) for part in ("session", "request")}
    kinds = {name: sample.schema.field(name).type for name in found.values() if name is not None}
    return {
        part: name
        for part, name in found.items()
        if name is not None and (pa.types.is_integer(kinds[name]) or pa.types.is_string(kinds[name]))
    }


def _label(sample: pa.Table, name: str | None, unit: str) -> Guess:
    if name is None:
        way = f"by: recent, window: {DAY[unit]}" if unit in DAY else "by: popularity"
        drawn = "items clicked in the day before" if unit in DAY else "clicked items"
        lines = ['label: {expression: "1"}', f"negatives: {{per_positive: 4, {way}}}"]
        why = f"No column looks like an answer: each row is taken for a click, and negatives are drawn from {drawn}."
        return Guess(lines, why)
    if (values := _values(sample, name)) <= {0, 1}:
        return Guess([f"label: {{column: {_quoted(name)}}}"], f"{name!r} has the name of an answer and holds 0 and 1.")
    bound = 0.8 * float(max(values))
    why = (
        f"{name!r} has the name of a rating and holds {min(values)} to {max(values)}: from four fifths on it is a yes."
    )
    return Guess([f"label: {{expression: '\"{name}\" >= {bound:g}'}}"], why)


def _log(source: Source, sample: pa.Table) -> Guess:
    lines = ["log:", f"  files: [{', '.join(map(_quoted, source.files))}]"]
    if source.delimiter:
        lines.append(f"  delimiter: {_quoted(source.delimiter)}")
    if format_of(source, Path(source.files[0])) == "parquet":
        return Guess(lines, "Parquet knows its types.")
    types = {name: _type(sample.schema.field(name).type) for name in sample.column_names}
    lines.append("  types: {" + ", ".join(f"{_quoted(name)}: {kind}" for name, kind in types.items()) + "}")
    return Guess(lines, "Types as the first rows have them: a later cell that does not fit rejects its row.")


def _type(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "int64"
    return "float64" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else "string"


def _id(part: str, name: str, sample: pa.Table) -> Guess:
    width = ", width: 32" if part == "item" else ""
    why = f"{name!r} has the name of the {part}; {len(_values(sample, name))} values in the rows looked at."
    return Guess([f"{part}: {{column: {_quoted(name)}{width}}}"], why)


def _timestamp(sample: pa.Table, name: str) -> tuple[Guess, str]:
    """The guess and its unit."""
    kind = sample.schema.field(name).type
    values = sample[name].drop_null()
    if pa.types.is_temporal(kind) or pa.types.is_string(kind):
        texts = [str(value) for value in values.slice(0, 100).to_pylist()]
        fit = [form for form in FORMATS if all(_fits(text, form) for text in texts)]
        if not fit:
            raise ValueError(
                f"the times in {name!r} such as {texts[0]!r} have none of the formats {', '.join(FORMATS)}"
            )
        unit = "ms" if fit[0].endswith("%f") else "s"
        lines = [f"timestamp: {{column: {_quoted(name)}, format: {_quoted(fit[0])}, unit: {unit}, zone: UTC}}"]
        return Guess(lines, f"{name!r} holds times such as {texts[0]}. Set the zone they are meant in."), unit
    middle = float(pc.call_function("quantile", [values]).to_pylist()[0])
    unit = next((unit for unit, low, high in UNITS if low <= middle < high), "step")
    why = f"{name!r} has the name of a time; {middle:.0f}, its middle value, is a present-day time in {unit}."
    if unit == "step":
        why = f"{name!r} has the name of an order; its middle value {middle:.0f} is no time, so it counts steps."
    return Guess([f"timestamp: {{column: {_quoted(name)}, unit: {unit}}}"], why), unit


def _fits(text: str, form: str) -> bool:
    try:
        datetime.strptime(text, form)
    except ValueError:
        return False
    return True


def _side_info(sample: pa.Table, taken: dict[str, str], label: str | None) -> list[Guess]:
    """Outcomes become event side info; what is fixed per item, item side info; the rest stands there as a question."""
    outcomes, fixed, rest = [], [], []
    for name in sample.column_names:
        if name in taken.values() or not name.isidentifier() or pa.types.is_nested(sample.schema.field(name).type):
            continue
        few = len(_values(sample, name)) <= FEW_VALUES and not pa.types.is_temporal(sample.schema.field(name).type)
        line = f"{_quoted(_feature(name))}: {{column: {_quoted(name)}, width: 16"
        line += "}" if few else ", buckets: 20}"
        if not few and _type(sample.schema.field(name).type) == "string":
            rest.append(line)
        elif name == label or _named("outcome", [name]):
            outcomes.append(line)
        elif few and _fixed(sample, taken["item"], name):
            fixed.append(line[:-1] + ", from_log: true}")
        else:
            rest.append(line)
    guesses = []
    if fixed:
        why = "One value for each item in the rows looked at, so properties of the item."
        guesses.append(Guess(["item_side:", *(f"  {line}" for line in fixed)], why))
    if outcomes:
        why = "Named like outcomes, so known of past events only."
        guesses.append(Guess(["event_side:", *(f"  {line}" for line in outcomes)], why))
    if rest:
        why = "Known when the item is shown, before the answer? Then take the # away; context: must lose it too."
        guesses.append(Guess(["# context:", *(f"#   {line}" for line in rest)], why))
    return guesses


def _feature(name: str) -> str:
    return f"{name}_value" if name.lower() in RESERVED or name in NO_TABLE_NAMES else name


def _fixed(sample: pa.Table, item: str, name: str) -> bool:
    pairs = sample.select([item, name]).group_by([item, name]).aggregate([]).num_rows
    items = len(_values(sample, item))
    return len(_values(sample, name)) > 1 and pairs == items < sample.num_rows // 2


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"' if not re.fullmatch(r"[A-Za-z_]\w*", text) else None).split("\n")[0]
