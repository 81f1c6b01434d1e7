"""Figures of a prepared data set that its data report shows, read from the finished files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from data_prep.recipe import SPLITS
from laser.schema import Feature, Kind, Schema

TIME_BUCKETS = 48
FEW_VALUES = 40
"""A context feature with at most this many values is shown value by value."""
EXAMPLES = 3


@dataclass(frozen=True)
class Drift:
    """How far two splits differ in one feature."""

    feature: str
    distance: dict[str, float]
    """Split -> total variation distance from train."""
    chance: float
    """The same between the two halves of train that alternate rows make: what chance alone brings."""


class Facts:
    """Queries over a prepared data set.

    Args:
        folder: the data set.
        schema: of it.
        options: of the engine, such as its limit of memory.
    """

    def __init__(self, folder: Path, schema: Schema, options: Mapping[str, Any]) -> None:
        self.folder, self.schema = folder, schema
        spill = os.fspath(folder / "spill")  # made when needed, and removed again, by the engine
        self.con = duckdb.connect(config={"temp_directory": spill, **options})
        parts = [f"SELECT *, '{split}' AS \"$split\" FROM {_read(folder / 'samples' / split)}" for split in SPLITS]
        self.con.execute(f"CREATE VIEW samples AS {' UNION ALL '.join(parts)}")

    def over_time(self) -> dict[str, list[tuple[float, int, float]]]:
        """Split -> (timestamp at the middle of the bucket, samples, click rate), in equal buckets of time."""
        time, label = _q(self.schema.timestamp.name), _q(self.schema.label.name)
        first, last = self._rows(f"SELECT min({time}), max({time}) FROM samples")[0]
        width = max(1, (last - first) // TIME_BUCKETS + 1)
        found = self._rows(
            f'SELECT "$split", ({time} - {first}) // {width} AS bucket, count(*), avg({label}) FROM samples '
            "GROUP BY ALL ORDER BY ALL"
        )
        by_split: dict[str, list[tuple[float, int, float]]] = {split: [] for split in SPLITS}
        for split, bucket, rows, rate in found:
            by_split[split].append((first + (bucket + 0.5) * width, rows, rate))
        return by_split

    def short_contexts(self) -> list[Feature]:
        """Context features of few values, scenarios first."""
        few = [f for f in self.schema.of_kind(Kind.CONTEXT) if f.length == 1 and 1 < (f.cardinality or 0) <= FEW_VALUES]
        return sorted(few, key=lambda f: "scenario" not in f.name and f.name != "tab")

    def by_value(self, feature: Feature) -> list[tuple[str, int, float]]:
        """(raw value, samples, click rate) in the order of the codes; "unknown" for code 0, hashed values as codes."""
        dictionary = self.folder / "ids" / f"{feature.name}.parquet"
        label, name = _q(self.schema.label.name), _q(feature.name)
        hashed = not dictionary.exists()
        raw = {} if hashed else dict(self._rows(f"SELECT code, raw FROM read_parquet('{_text(dictionary)}')"))
        found = self._rows(f"SELECT {name}, count(*), avg({label}) FROM samples GROUP BY 1 ORDER BY 1")
        return [(str(raw.get(code, "unknown" if code == 0 else code)), rows, rate) for code, rows, rate in found]

    def coverage(self) -> list[dict[str, Any]]:
        """Per split: distinct users and items, and of all samples those with a user, an item not seen in train."""
        user, item = _q(self.schema.user.name), _q(self.schema.item.name)
        new = ", ".join(
            f"avg(({column} NOT IN (SELECT {column} FROM samples WHERE \"$split\" = 'train'))::INT)"
            for column in (user, item)
        )
        found = {
            row[0]: row
            for row in self._rows(
                f'SELECT "$split", count(*), count(DISTINCT {user}), count(DISTINCT {item}), {new} '
                "FROM samples GROUP BY 1"
            )
        }
        keys = ("split", "samples", "users", "items", "new_user", "new_item")
        return [dict(zip(keys, found[split], strict=True)) for split in SPLITS if split in found]

    def drifts(self) -> list[Drift]:
        """Of the item, each context feature and the label, largest distance first."""
        features = [self.schema.item, *self.schema.of_kind(Kind.CONTEXT), self.schema.label]
        found = [self._drift(f.name) for f in features if f.length == 1]
        return sorted(found, key=lambda drift: -max(drift.distance.values()))

    def _drift(self, name: str) -> Drift:
        distance = {split: self._distance(name, "train", split) for split in SPLITS if split != "train"}
        return Drift(name, distance, self._distance(name, "even", "odd"))

    def _distance(self, name: str, first: str, second: str) -> float:
        """Half the sum of absolute differences of the values' shares."""
        halves = {"even": "row % 2 = 0", "odd": "row % 2 = 1"}
        sides = {split: f"\"$split\" = '{split}'" for split in SPLITS}
        sides |= {half: f"{sides['train']} AND {rows}" for half, rows in halves.items()}
        shares = [
            f"SELECT {_q(name)} AS v, count(*) / sum(count(*)) OVER () AS share FROM samples WHERE {sides[side]} "
            "GROUP BY 1"
            for side in (first, second)
        ]
        joined = f"SELECT sum(abs(coalesce(a.share, 0) - coalesce(b.share, 0))) / 2 FROM ({shares[0]}) a "
        return float(self._rows(f"{joined} FULL JOIN ({shares[1]}) b ON a.v = b.v")[0][0] or 0.0)

    def rejected_examples(self, reason: str) -> list[dict[str, Any]]:
        """First rows that were rejected for a reason, as they were parsed."""
        files = _read(self.folder / "rejected")
        query = self.con.execute(f"SELECT * EXCLUDE (reason) FROM {files} WHERE reason = ? LIMIT {EXAMPLES}", [reason])
        names = [column[0] for column in query.description or []]
        return [dict(zip(names, row, strict=True)) for row in query.fetchall()]

    def _rows(self, sql: str) -> list[Any]:
        return self.con.execute(sql).fetchall()


def _q(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(path: Path) -> str:
    return os.fspath(path).replace("'", "''")


def _read(folder: Path) -> str:
    """Rows of a folder's files; additions may have widened the types of codes, which must hold those of all files."""
    files = ", ".join(f"'{_text(path)}'" for path in sorted(folder.glob("*.parquet")))
    return f"read_parquet([{files}], union_by_name = true)"
