"""A data set changes in one step or not at all, whatever kills the job."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep import staging

BUILD = """
import sys, time
from pathlib import Path
from data_prep.staging import staged
with staged(Path(sys.argv[1])) as folder:
    (folder / "schema.json").write_text("new")
    (folder / "report.json").write_text("new")
    print("built", flush=True)
    time.sleep(float(sys.argv[2]))
"""

WATCH = """
import sys, time
from pathlib import Path
print("ready", flush=True)
end = time.time() + 1
while time.time() < end:
    (Path(sys.argv[1]) / "schema.json").read_text()
"""


def start(out: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(out), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "built\n"
    return process


@pytest.fixture
def old(tmp_path: Path) -> Path:
    out = tmp_path / "data" / "set"
    out.mkdir(parents=True)
    for name in staging.MARKERS:
        (out / name).write_text("old")
    return out


def content(out: Path) -> set[str]:
    return {(out / name).read_text() for name in staging.MARKERS}


def test_killed_job_changes_nothing_and_is_swept_up(old):
    process = start(old, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert content(old) == {"old"}
    assert len(list(old.parent.iterdir())) == 2
    assert start(old, 0).wait() == 0
    assert content(old) == {"new"}
    assert list(old.parent.iterdir()) == [old]


def test_living_job_is_left_alone(old):
    process = start(old, 60)
    with pytest.raises(ValueError, match="is being prepared by another process"), staging.staged(old):
        pass
    process.terminate()
    process.wait()
    assert content(old) == {"old"}


def test_failed_job_leaves_no_trace(old):
    with pytest.raises(FileNotFoundError), staging.staged(old) as folder:
        (folder / "no such folder" / "schema.json").write_text("half")
    assert content(old) == {"old"}
    assert list(old.parent.iterdir()) == [old]


def test_there_is_always_a_data_set(old):
    """Readers that look all the time see the old or the new one, never none or a mixture."""
    watcher = subprocess.Popen([sys.executable, "-c", WATCH, str(old)], stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    watcher.stdout.readline()
    while watcher.poll() is None:
        with staging.staged(old) as folder:
            for name in staging.MARKERS:
                (folder / name).write_text("new")
    assert watcher.returncode == 0


def test_without_exchange(old, monkeypatch):
    """File systems that cannot exchange: two renames, and a kill between them is repaired."""
    monkeypatch.setattr(staging, "_exchange", lambda a, b: False)
    with staging.staged(old) as folder:
        for name in staging.MARKERS:
            (folder / name).write_text("new")
    assert content(old) == {"new"}
    old.rename(old.with_name(".set.preparing-x.replaced"))
    unfinished = old.with_name(".set.preparing-x")
    unfinished.mkdir()
    with pytest.raises(ZeroDivisionError), staging.staged(old):
        raise ZeroDivisionError
    assert content(old) == {"new"}
    assert list(old.parent.iterdir()) == [old]


def test_interrupted_preparation(tmp_path, write):
    """Ctrl-C: one line, exit code 130, nothing left."""
    command = [Path(sys.executable).with_name("laser-prep"), "run", write(), "--out", tmp_path / "out"]
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".out.preparing-*/*/engine.duckdb")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert (process.returncode, told.count("\n")) == (130, 1), told
    assert not list(tmp_path.glob("*out*"))


def test_killed_preparation(laser_prep, tmp_path, small, write, log):
    """SIGKILL at several moments of a real job: the old or the new data set is there whole; the next run succeeds."""
    out = Path(shutil.copytree(small, tmp_path / "out"))
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    recipe = write(note="again")
    for seconds in (0.6, 0.9, 1.2):
        command = [Path(sys.executable).with_name("laser-prep"), "run", recipe, "--out", out]
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if json.loads((out / "report.json").read_text())["note"] == "again":  # killed after the switch
            assert laser_prep("check", out).returncode == 0
            break
        assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    done = laser_prep("run", recipe, "--out", out)
    assert done.returncode == 0, done.stderr
    assert laser_prep("check", out).returncode == 0
    assert not list(tmp_path.glob(".out.*"))
