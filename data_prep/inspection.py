"""``laser-prep inspect``: one user of a prepared data set, as a person wants to read a case.

Codes are turned back into the raw ids of ``ids/``; the unknown code 0 is shown as ``-``, and a code that has no
dictionary as ``#code``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.recipe import SPLITS
from laser.schema import Feature, Kind, Schema
from laser.seqvault import SeqVault

UNKNOWN = "-"
SAMPLES_SHOWN = 20
CURE = "give a folder that laser-prep wrote"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """What a prepared data set holds of one user, in codes."""

    code: int
    samples: Rows
    """In time order, with ``split``."""
    events: dict[str, np.ndarray]
    """Of the history that is shown, oldest first."""


def inspect(
    folder: Path, user: str, sample: int | None = None, width: int = 16, last: int = 64, coded: bool = False
) -> None:
    """Print a user's history, its segments and its samples.

    Args:
        folder: that ``laser-prep run`` wrote.
        user: raw id of the user.
        sample: number of one of the user's samples as listed; shows the history as that sample sees it.
        width: events per segment; segments end at the newest event.
        last: newest events shown; 0 shows all.
        coded: whether ``user`` is a code instead of a raw id.
    """
    if width < 1 or last < 0:
        raise ValueError(f"--width is {width} and --last {last}; expected a width of at least 1 and no negative --last")
    schema = Schema.load(folder / "schema.json")
    names = Names(folder, schema)
    code = _code_of(folder, schema, user, coded)
    samples = _samples(folder, schema, code)
    if sample is not None and not 1 <= sample <= len(samples):
        raise ValueError(f"--sample is {sample}; user {user} has {len(samples)} samples, numbered from 1")
    chosen = None if sample is None else samples[sample - 1]
    before = None if chosen is None else int(chosen[schema.timestamp.name])
    with SeqVault.open(folder / "vault") as vault:
        events = vault.read(np.array([code]), before=before).of(0)
    case = Case(code, samples, events)
    raw = names.of(schema.user, [code])[0]
    print(f"{schema.name}: {schema.user.name} {raw} (code {code})")
    _print_overview(schema, case)
    _print_history(schema, names, case, chosen, width, last)
    _print_samples(schema, names, samples, sample)


class Names:
    """Turns codes back into raw values, reading only what is asked for."""

    def __init__(self, folder: Path, schema: Schema) -> None:
        self.folder, self.schema = folder, schema

    def of(self, feature: Feature, codes: Any) -> list[str]:
        """Raw values, written as text, of N codes or of N lists of codes."""
        codes = np.asarray(codes)
        known = self._raw(feature, np.unique(codes))
        shown = [
            [known.get(code, f"#{code}") for code in row if code] for row in codes.reshape(len(codes), -1).tolist()
        ]
        return [" | ".join(row) or UNKNOWN for row in shown]

    def side_info(self, items: np.ndarray) -> dict[str, list[str]]:
        """Item side info by name, for N item codes."""
        distinct, place = np.unique(items, return_inverse=True)
        features = self.schema.of_kind(Kind.ITEM_SIDE)
        wanted = [self.schema.item.name, *(f.name for f in features)]
        table = _read(self.folder / "items.parquet", self.schema.item.name, distinct, wanted)
        return {f.name: self.of(f, np.array(table[f.name].to_pylist())[place]) for f in features}

    def _raw(self, feature: Feature, codes: np.ndarray) -> dict[int, str]:
        path = self.folder / "ids" / f"{feature.name}.parquet"
        if not path.exists():
            return {}
        table = _read(path, "code", codes, ["raw", "code"])
        return {code: _text(raw) for raw, code in zip(table["raw"].to_pylist(), table["code"].to_pylist())}


def _read(path: Path, key: str, values: np.ndarray, columns: list[str]) -> pa.Table:
    """Rows whose ``key`` is among sorted values, in the order of the key.

    The filter gets a copy of the values: one of Arrow's threads may let go of it when Python has already begun to
    end, and letting go of NumPy's memory then aborts the process.
    """
    copied = pa.array(values.tolist(), pa.from_numpy_dtype(values.dtype))
    try:
        found = pq.read_table(path, columns=columns, filters=pc.field(key).isin(copied))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; {CURE}") from None
    return found.sort_by(key)


def _text(raw: Any) -> str:
    if raw == float("-inf"):  # of the first bucket, whose raw value is its lower bound
        return "lowest"
    return f"{raw:g}" if isinstance(raw, float) else str(raw)


def _code_of(folder: Path, schema: Schema, user: str, coded: bool) -> int:
    users = (schema.user.cardinality or 1) - 1
    if coded:
        if not (user.isdecimal() and 1 <= int(user) <= users):
            raise ValueError(f"no user with code {user!r} in {folder}; codes of its users are 1 to {users}")
        return int(user)
    path = folder / "ids" / f"{schema.user.name}.parquet"
    if not path.exists():
        raise ValueError(f"{path} is missing, so raw ids are not known; give a code with --coded=true")
    table = pq.read_table(path)
    found = table.filter(pc.field("raw").cast(pa.string()) == user)
    if not found.num_rows:
        first = ", ".join(_text(raw) for raw in table["raw"].slice(0, 3).to_pylist())
        raise ValueError(f"no user {user!r} among the {users} of {folder}, whose ids are such as {first}")
    return int(found["code"][0].as_py())


def _samples(folder: Path, schema: Schema, code: int) -> Rows:
    rows: Rows = []
    for split in SPLITS:
        path = folder / "samples" / split
        if not path.is_dir():
            raise ValueError(f"{path} is missing; {CURE}")
        for file in sorted(path.glob("*.parquet")):  # one by one: additions may have widened the types of codes
            found = pq.read_table(file, filters=pc.field(schema.user.name) == code).to_pylist()
            rows += [{**row, "split": split} for row in found]
    return sorted(rows, key=lambda row: row[schema.timestamp.name])


def _print_overview(schema: Schema, case: Case) -> None:
    counts = ", ".join(f"{sum(row['split'] == split for row in case.samples)} {split}" for split in SPLITS)
    positive = sum(row[schema.label.name] for row in case.samples)
    print(f"{len(case.samples)} samples ({counts}), {positive} with label 1")


def _print_history(
    schema: Schema, names: Names, case: Case, chosen: dict[str, Any] | None, width: int, last: int
) -> None:
    time_T = case.events[schema.timestamp.name]
    total, segments = len(time_T), -(-len(time_T) // width)
    seen = "history" if chosen is None else f"history before {_time(schema, chosen[schema.timestamp.name])}"
    print(f"\n{seen}: {total:,} events in {segments:,} segments of {width}, oldest first")
    if not total:
        return
    shown = min(total, last) if last else total
    if shown < total:
        print(f"  ... {total - shown:,} older events; --last 0 shows all")
    rows = slice(total - shown, total)
    item_T = case.events[schema.item.name][rows]
    columns = {"time": [_time(schema, time) for time in time_T[rows].tolist()]}
    columns[schema.item.name] = names.of(schema.item, item_T)
    columns |= names.side_info(item_T)
    columns |= {f.name: names.of(f, case.events[f.name][rows]) for f in schema.of_kind(Kind.EVENT_SIDE)}
    lines = _lines(columns)
    print(f"  {lines[0]}")
    for index, line in enumerate(lines[1:], total - shown):
        segment = segments - 1 - (total - 1 - index) // width
        if index == total - shown or (total - index) % width == 0:
            print(f"  -- segment {segment + 1} of {segments}")
        print(f"  {line}")


def _print_samples(schema: Schema, names: Names, samples: Rows, chosen: int | None) -> None:
    first = max(len(samples) - SAMPLES_SHOWN, 0)
    if chosen is not None:
        first = min(first, max(chosen - SAMPLES_SHOWN // 2, 0))
    shown = samples[first : first + SAMPLES_SHOWN]
    print(
        "\nsamples" + ("" if len(shown) == len(samples) else f" {first + 1} to {first + len(shown)} of {len(samples)}")
    )
    if not shown:
        return
    item = np.array([row[schema.item.name] for row in shown])
    columns = {"no.": [str(number) for number in range(first + 1, first + len(shown) + 1)]}
    columns |= {"split": [row["split"] for row in shown], "row": [str(row["row"]) for row in shown]}
    columns["time"] = [_time(schema, row[schema.timestamp.name]) for row in shown]
    columns[schema.item.name] = names.of(schema.item, item)
    columns[schema.label.name] = [str(row[schema.label.name]) for row in shown]
    columns |= names.side_info(item)
    context = schema.of_kind(Kind.CONTEXT)
    columns |= {f.name: names.of(f, [row[f.name] for row in shown]) for f in context}
    known = {"row", "split", *(f.name for f in schema.features)}
    columns |= {name: [_text(row[name]) for row in shown] for name in shown[0] if name not in known}
    for place, line in enumerate(_lines(columns)):
        marked = chosen is not None and place == chosen - first
        print(f"{'> ' if marked else '  '}{line}")


def _lines(columns: dict[str, list[str]]) -> list[str]:
    """A header and the rows, in columns of equal width."""
    padded = []
    for name, cells in columns.items():
        size = max(len(cell) for cell in [name, *cells])
        padded.append([cell.ljust(size) for cell in [name, *cells]])
    return ["  ".join(row).rstrip() for row in zip(*padded)]


def _time(schema: Schema, ticks: int) -> str:
    if schema.timestamp_unit == "step":
        return f"step {ticks}"
    try:
        moment = datetime.fromtimestamp(ticks * schema.seconds_per_tick, UTC)
    except (ValueError, OverflowError, OSError):
        return str(ticks)
    return moment.strftime("%Y-%m-%d %H:%M:%S" if schema.timestamp_unit == "s" else "%Y-%m-%d %H:%M:%S.%f")[:23]
