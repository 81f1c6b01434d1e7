"""Runs that go on after a kill, limits of memory, and what is refused of engines."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from data_prep.engine import DuckDBEngine
from data_prep.memory import Budget
from data_prep.pipeline import prepare

RESUMED = "goes on where a killed run"


def kill_when(pattern: str, folder: Path, *arguments: object) -> None:
    """Start a preparation and kill it as soon as its staging folder holds ``pattern``."""
    command = [Path(sys.executable).with_name("laser-prep"), "run", *arguments]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(folder.glob(f".out.preparing-*/{pattern}")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def larger(write: Any) -> Path:
    """A recipe over a log of 100,000 rows, so that a kill can hit each part of its preparation."""
    random = np.random.default_rng(5)
    rows = 100_000
    columns: dict[str, Any] = {name: random.integers(1, 2000, rows) for name in ("user", "item", "shop")}
    columns |= {
        "time": random.permutation(rows),
        "stars": random.integers(1, 6, rows).astype(float),
        "price": random.normal(size=rows),
    }
    return write(columns, context={"price": {"column": "price", "buckets": 5, "width": 4}})


@pytest.mark.parametrize("pattern", ["work/engine.duckdb", "vault", "work/samples.done"])
def test_killed_run_goes_on(larger, laser_prep, tmp_path, pattern):
    """Whatever it had finished, the data set is the same as of a run in one go."""
    prepare(larger, tmp_path / "whole")
    kill_when(pattern, tmp_path, larger, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = laser_prep("run", larger, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert RESUMED in done.stderr
    for path in sorted((tmp_path / "whole").rglob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes(), path
    assert laser_prep("check", tmp_path / "out").returncode == 0
    assert not list(tmp_path.glob(".out.*"))


def test_run_killed_while_the_engine_makes_its_file(tmp_path, monkeypatch):
    def half(path: Path, *_: Any, **__: Any) -> None:
        Path(path).write_bytes(b"half of a header")
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(duckdb, "connect", half)
        with pytest.raises(KeyboardInterrupt):
            DuckDBEngine(tmp_path, Budget("1GiB"))
    engine = DuckDBEngine(tmp_path, Budget("1GiB"))
    assert engine.con.list_tables() == []
    engine.close()
    assert [path.name for path in tmp_path.iterdir()] == ["engine.duckdb"]


def test_finished_parts_are_not_written_again(larger, laser_prep, tmp_path):
    kill_when("samples", tmp_path, larger, "--out", tmp_path / "out")
    (left,) = tmp_path.glob(".out.preparing-*/vault")
    number = left.stat().st_ino
    assert laser_prep("run", larger, "--out", tmp_path / "out").returncode == 0
    assert (tmp_path / "out/vault").stat().st_ino == number


@pytest.mark.parametrize("change", ["recipe", "file"])
def test_changed_input_starts_anew(write, larger, laser_prep, tmp_path, change):
    kill_when("vault", tmp_path, larger, "--out", tmp_path / "out")
    if change == "recipe":
        larger.write_text(larger.read_text() + "note: changed\n")
    else:
        (tmp_path / "log.parquet").touch()
    done = laser_prep("run", larger, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert RESUMED not in done.stderr
    assert not list(tmp_path.glob(".out.*"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--memory", "lots"], "--memory is 'lots'; expected a size such as 4GB or 512MiB"),
        (["--memory", "200MB"], "--memory 200MB is below the least that a preparation needs; give 1GiB or more"),
        (["--threads", "0"], "--threads is 0; expected at least 1"),
        (["--spark_master", "spark://x:1"], "--spark_master spark://x:1 needs --engine spark; the engine is duckdb"),
    ],
)
def test_refused_options(write, laser_prep, tmp_path, options, sentence):
    done = laser_prep("run", write(), "--out", tmp_path / "out", *options)
    assert (done.returncode, done.stderr) == (2, f"laser-prep: {sentence}\n")


def test_sizes():
    assert Budget("2GB").total == 2 * 10**9
    assert Budget("1.5 GiB").total == 3 << 29
    engine = int(0.9 * (2 * 10**9 - (700 << 20)))
    assert Budget("2GB", 3).duckdb_options() == {"memory_limit": f"{engine}B", "threads": 3}
