"""A small raw log with ties, and the console script in its own process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.pipeline import prepare

USERS, PER_USER, ITEMS = 12, 30, 25
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def log() -> dict[str, np.ndarray]:
    """Columns of 360 rows in no order: two in three timestamps of a user are shared with a neighbour."""
    random = np.random.default_rng(7)
    rows = USERS * PER_USER
    user = np.repeat(np.arange(1, USERS + 1), PER_USER) * 10
    time = np.tile(np.arange(PER_USER) // 2 * 2 + 1000, USERS)
    order = random.permutation(rows)
    columns = {
        "user": user,
        "item": random.integers(100, 100 + ITEMS, rows),
        "time": time,
        "stars": random.integers(1, 6, rows).astype(np.float64),
        "price": random.normal(size=rows),
        "shop": random.integers(0, 3, rows),
    }
    return {name: values[order] for name, values in columns.items()}


@pytest.fixture(scope="session")
def recipe_data() -> dict[str, Any]:
    """A recipe for that log."""
    return {
        "name": "small",
        "log": {"files": "log.parquet"},
        "user": {"column": "user"},
        "item": {"column": "item", "width": 4},
        "timestamp": {"column": "time"},
        "label": {"expression": "stars >= 4"},
        "event_side": {"stars": {"column": "stars", "width": 4}},
        "split": {"per_user": {"validation": 0.1, "test": 0.1}},
    }


def write_raw(folder: Path, log: dict[str, Any], recipe: dict[str, Any]) -> Path:
    """Write log and recipe; returns the recipe's path. A column that is None is left out."""
    pq.write_table(
        pa.table({name: values for name, values in log.items() if values is not None}), folder / "log.parquet"
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"raw": str(folder)} | recipe))
    return path


@pytest.fixture
def write(tmp_path: Path, log: dict[str, np.ndarray], recipe_data: dict[str, Any]) -> Callable[..., Path]:
    """Writes log and recipe with changes, each a column or a key of the recipe; returns the recipe's path."""

    def write_changed(columns: dict[str, Any] | None = None, **recipe: Any) -> Path:
        return write_raw(tmp_path, log | (columns or {}), recipe_data | recipe)

    return write_changed


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, log: dict[str, np.ndarray], recipe_data: dict[str, Any]) -> Path:
    """The small log prepared: do not write into it."""
    folder = tmp_path_factory.mktemp("small")
    prepare(write_raw(folder, log, recipe_data), folder / "out")
    return folder / "out"


@pytest.fixture(scope="session")
def laser_prep() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The console script."""

    def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).with_name("laser-prep")
        command = [str(script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)

    return run


@pytest.fixture(scope="session")
def movielens(tmp_path_factory: pytest.TempPathFactory, laser_prep: Callable[..., Any]) -> Path:
    """The bundled data set, prepared by the console script."""
    out = tmp_path_factory.mktemp("prepared") / "movielens_small"
    done = laser_prep("run", ROOT / "conf/prep/movielens_small.yaml", "--out", out)
    assert done.returncode == 0, done.stderr
    return out
