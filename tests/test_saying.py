"""What a launch says, it says once, and it leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from laser import saying

ROLE = """
import os, sys
from laser.saying import one_of_a_launch, say_once
with one_of_a_launch():
    print("joined", flush=True)
    sys.stdin.readline()
    say_once("no such file")
    if "dies" in sys.argv:
        os.kill(os.getpid(), 9)
    print("said", flush=True)
    sys.stdin.readline()
"""


class Role(subprocess.Popen):
    """A process of a launch that waits to be told to go on."""

    def __init__(self, folder: Path, launch: dict[str, str], *arguments: str) -> None:
        unlaunched = {name: value for name, value in os.environ.items() if name not in ("LASER_SAID", *launch)}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        environment = unlaunched | {"TMPDIR": str(folder), **launch}
        super().__init__([sys.executable, "-c", ROLE, *arguments], env=environment, text=True, **pipes)
        assert self.stdout.readline() == "joined\n"

    def go_on(self) -> str:
        self.stdin.write("\n")
        self.stdin.flush()
        return self.stdout.readline()

    def end(self) -> str:
        """What it said."""
        return self.communicate("\n", timeout=20)[1]


@pytest.mark.parametrize("launch", [{"LASER_SAID": "shared"}, {"TORCHELASTIC_RUN_ID": "none"}])
def test_two_processes_say_it_once_and_the_last_cleans_up(tmp_path: Path, launch):
    first, second = Role(tmp_path, launch), Role(tmp_path, launch)
    assert first.go_on() == "said\n"
    assert first.end() == "no such file\n"
    assert list(tmp_path.iterdir())
    assert second.go_on() == "said\n"
    assert second.end() == ""
    assert not list(tmp_path.iterdir())
    again = Role(tmp_path, launch)  # as a later run under the same name does
    again.go_on()
    assert again.end() == "no such file\n"
    assert not list(tmp_path.iterdir())


def test_runs_of_their_own_do_not_silence_each_other(tmp_path: Path):
    first, second = Role(tmp_path, {}), Role(tmp_path, {})
    first.go_on(), second.go_on()
    assert first.end() == second.end() == "no such file\n"
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_left_is_removed_by_the_next(tmp_path: Path):
    victim = Role(tmp_path, {"LASER_SAID": "one"}, "dies")
    assert victim.go_on() == ""
    assert victim.end() == "no such file\n"
    assert list(tmp_path.iterdir())
    (tmp_path / f"{saying.PREFIX}file").touch()
    other = Role(tmp_path, {"LASER_SAID": "two"})
    other.go_on()
    other.end()
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_does_not_silence(monkeypatch, capsys):
    monkeypatch.setattr(saying.tempfile, "tempdir", "/proc/nowhere")
    monkeypatch.setenv(saying.SAID, "x")
    with saying.one_of_a_launch():
        saying.say_once("no such file")
    assert capsys.readouterr().err == "no such file\n"
