"""Each mistake of a user: one sentence, exit code 2, and nothing left behind or changed."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_prep.cli import main


@pytest.fixture
def refuse(tmp_path, capfd):
    """Runs the command and returns its only line; the folder must look as before."""

    def run(recipe: Path, *more: Any, out: str = "out") -> str:
        before = sorted(path.name for path in tmp_path.iterdir())
        code = main(["run", str(recipe), "--out", str(tmp_path / out), *map(str, more)])
        lines = capfd.readouterr().err.strip().split("\n")
        assert (code, len(lines)) == (2, 1), lines
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        return lines[0]

    return run


def test_console_script(laser_prep, write, tmp_path):
    """A process of its own: exit code 2, one line, no traceback."""
    done = laser_prep("run", write(label={"column": "stars"}), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("laser-prep: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def with_value(column: np.ndarray, row: int, value: Any) -> np.ndarray:
    changed = column.astype(float if isinstance(value, float) else column.dtype).copy()
    changed[row] = value
    return changed


def test_wrong_paths(refuse, write, tmp_path):
    recipe = write()
    assert "no recipe at" in refuse(tmp_path / "nowhere.yaml")
    assert "raw folder" in refuse(recipe, "--raw", tmp_path / "nowhere")
    assert "no file 'log.parquet' in" in refuse(recipe, "--raw", "/proc/self/fd")
    recipe = write(raw="bundled:movielens_huge")
    assert "movielens_huge does not exist" in refuse(recipe)


def test_unknown_key(refuse, write):
    assert "unknown key 'column_'; did you mean 'column'?" in refuse(write(user={"column_": "user"}))


def test_missing_column(refuse, write):
    assert "log.parquet has no column 'stars'; it has user, item" in refuse(write({"stars": None}))


def test_label_not_0_or_1(refuse, write):
    said = refuse(write(label={"column": "stars"}))
    assert "label is not 0 or 1, first at log row" in said
    assert "above max_rejected 0.01" in said


def test_timestamps_as_text(refuse, write, log, tmp_path):
    text = np.array([f"2015-01-01 10:{minute:02d}" for minute in log["time"] % 60])
    assert "the timestamp has type string such as '2015-01-01" in refuse(write({"time": text}))
    columns = ["user", "item", "time", "stars"]
    rows = zip(log["user"], log["item"], text, log["stars"])
    (tmp_path / "log.csv").write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]))
    types = {"user": "int64", "item": "int64", "time": "int64", "stars": "float64"}
    said = refuse(write(log={"files": "log.csv", "types": types}))
    assert "column time is not a whole number, first at log row 0" in said
    assert "cell='2015-01-01" in said
    del types["stars"]
    assert "column 'stars' has no type" in refuse(write(log={"files": "log.csv", "types": types}))


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("time", float("nan"), "timestamp is missing"),
        ("time", 1000.5, "timestamp is not a whole number"),
        ("time", -5, "timestamp is negative"),
        ("stars", float("nan"), "label is missing"),
        ("item", -3, "item id is negative"),
        ("user", float("nan"), "user id is missing"),
    ],
)
def test_unfit_row(refuse, write, log, column, value, reason):
    said = refuse(write({column: with_value(log[column], 11, value)}, max_rejected=0.0))
    assert said.startswith("laser-prep: 1 of 360 rows are unfit (0.28%), above max_rejected 0")
    assert f"{reason}" in said
    assert "first at log row 11, " in said
    assert "log.parquet row group 0, row 11 (user=" in said


def test_empty_split(refuse, write):
    by_time = {"validation": 5000, "test": 6000}
    assert "split 'val' is empty (samples: train 360, val 0, test 0)" in refuse(write(split={"by_time": by_time}))
    assert "the log has no rows" in refuse(
        write({name: np.array([], int) for name in ("user", "item", "time", "stars", "price", "shop")})
    )


def test_truncated_parquet(refuse, write, tmp_path):
    recipe = write()
    whole = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "log.parquet").write_bytes(whole[:-100])
    assert "log.parquet cannot be read as Parquet" in refuse(recipe)
    (tmp_path / "log.parquet").write_bytes(whole[:40] + bytes(len(whole) - 600) + whole[-560:])
    refuse(recipe)


def test_bad_expressions(refuse, write):
    assert "is not an SQL expression" in refuse(write(label={"expression": "stars >= >= 4"}))
    assert "is a statement" in refuse(write(target={"where": "(SELECT 1)"}))
    assert "the label has type string" in refuse(write(label={"expression": "concat('a', item)"}))


def test_folder_of_the_user(refuse, write, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    recipe = write()
    assert "is not a prepared data set, and is left alone" in refuse(recipe, out="mine")
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert "is not a folder" in refuse(recipe, out="log.parquet")


@pytest.mark.parametrize("kilobytes", [4, 300])
def test_disk_full(laser_prep, write, log, tmp_path, small, kilobytes):
    """Files that may not grow stand for a full disk; the data set of before stays."""
    shutil.copytree(small, tmp_path / "out")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()}
    times = 200
    long = {name: np.tile(values, times) for name, values in log.items()}
    long["time"] = np.arange(len(long["time"])) + 1000
    long["item"] = np.random.default_rng(0).integers(0, 2**60, len(long["time"]))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))

    done = laser_prep("run", write(long), "--out", tmp_path / "out", preexec_fn=limit)
    assert done.returncode == 2, done
    assert "is full or over its quota" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob(".out.*"))
    assert {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()} == before


def test_recipe_that_is_no_yaml(refuse, tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: [1, 2")
    assert "is not YAML" in refuse(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(["name"]))
    assert "expected keys of name" in refuse(tmp_path / "recipe.yaml")
