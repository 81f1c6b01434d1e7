"""What a run left in its folder, read for the report; a missing file is noted, a broken one is refused."""

from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

COLUMNS = ("row", "user", "item", "timestamp", "label", "probability", "history_length")
MARKS = ("config.yaml", "metrics.csv", "metrics.json", "predictions/test.parquet")
MADE_BY = {
    "config.yaml": "laser fit",
    "metrics.csv": "laser fit",
    "throughput.json": "laser fit",
    "metrics.json": "laser test",
    "gates.json": "laser test, for a network with gates",
    "predictions/test.parquet": "laser test",
}


@dataclass
class RunFolder:
    """A folder ``runs/NAME``.

    Args:
        path: the folder.

    Attributes:
        missing: per file that was asked for and is not there, a sentence that says so.

    Raises:
        ValueError: when the folder holds nothing that a run writes, or a file in it cannot be read.
    """

    path: Path
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any((self.path / mark).exists() for mark in MARKS):
            found = "an empty or foreign folder" if self.path.is_dir() else "no such folder"
            raise ValueError(f"{self.path} is not a run ({found}); give the folder of a run that laser fit wrote")

    def _file(self, name: str) -> Path | None:
        if (self.path / name).is_file():
            return self.path / name
        self.missing[name] = f"{name} is missing from the run; {MADE_BY[name]} writes it."
        return None

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file, None when it is missing."""
        file = self._file(name)
        return None if file is None else _read_json(file)

    def config(self) -> tuple[str, dict[str, Any]]:
        """``config.yaml`` as text and as data, both empty when it is missing."""
        file = self._file("config.yaml")
        if file is None:
            return "", {}
        try:
            text = file.read_text()
            return text, yaml.safe_load(text) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not YAML ({_one_line(error)}); start the run again with laser fit") from None

    def curves(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Steps and values of each column of ``metrics.csv``, without the empty cells."""
        file = self._file("metrics.csv")
        if file is None:
            return {}
        points: dict[str, list[tuple[float, float]]] = {}
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                step = _number(row.get("step"))
                for name, cell in row.items():
                    if name not in ("step", None) and not math.isnan(value := _number(cell)):
                        points.setdefault(name, []).append((step, value))
        return {name: (np.array(p)[:, 0], np.array(p)[:, 1]) for name, p in points.items()}

    def predictions(self) -> dict[str, np.ndarray] | None:
        """Columns of the test predictions, None when they are missing."""
        file = self._file("predictions/test.parquet")
        if file is None:
            return None
        again = "run laser test again"
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} cannot be read as Parquet ({_one_line(error)}); {again}") from None
        if lacking := [name for name in COLUMNS if name not in table.column_names]:
            raise ValueError(f"{file} has no column {lacking[0]!r}; it has {', '.join(table.column_names)}: {again}")
        columns = {name: table[name].to_numpy() for name in COLUMNS}
        if not np.isfinite(columns["probability"]).all():
            raise ValueError(f"{file} holds probabilities that are not numbers, expected 0 to 1; {again}")
        return columns

    def prepared(self) -> Path | None:
        """The prepared data set that ``config.yaml`` names, looked for from here and from the run's parents."""
        data = self.config()[1].get("data") or {}
        named = (data.get("init_args") or {}).get("path") or data.get("path")
        if named is None:
            self.missing["prepared"] = "config.yaml names no prepared data set (data.path)."
            return None
        for start in (Path(), *self.path.resolve().parents):
            if (start / named / "schema.json").is_file():
                return start / named
        self.missing["prepared"] = f"The prepared data set {named} is not there any more; laser-prep makes it again."
        return None


def rewrite_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file atomically; what is not a number becomes null, as JSON has no NaN."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def without_nan(value: Any) -> Any:
    """The same nested data with None for each float that is not finite."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON ({_one_line(error)}); run the command that wrote it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected an object; run laser test again")
    return content


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
