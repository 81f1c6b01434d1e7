"""Real processes whose main threads wait for ever, as they do under NCCL: a loss is found and said by other threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("beating.py")
LOST, LEFT_ALONE = 3, -99


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[int], list[str]]]:
    """``outcome(case)``: exit codes of three processes, and what they printed to stderr but for traces of torch."""
    folder = tmp_path_factory.mktemp("beating")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    codes = json.loads((folder / "codes.json").read_text())

    def find(case: str) -> tuple[list[int], list[str]]:
        lines = [line for rank in range(3) for line in (folder / f"{case}.{rank}").read_text().splitlines()]
        said = [line for line in lines if line.startswith("laser: ")]
        return codes[case], said if said else lines

    return find


def names(said: list[str], process: int) -> bool:
    """Whether a process is named once."""
    return len(said) == 1 and said[0].startswith(f"laser: process {process} of 3 was lost after step 7: it no longer")


def test_one_that_watches_says_it_and_the_others_leave(outcome):
    """Process 0 does not watch process 2: it hears that something was said. Loggers hang in both."""
    codes, said = outcome("last_is_stopped")
    assert codes == [LOST, LOST, LEFT_ALONE]
    assert names(said, 2), said


def test_a_store_that_is_silent_is_a_lost_process(outcome):
    """Process 0 keeps it: questions to it are never answered, nor refused."""
    codes, said = outcome("first_is_stopped")
    assert codes == [LEFT_ALONE, LOST, LOST]
    assert names(said, 0), said


def test_a_store_that_is_gone_is_a_lost_process(outcome):
    codes, said = outcome("first_dies")
    assert codes == [-9, LOST, LOST]
    assert names(said, 0), said


@pytest.mark.parametrize("case", ["first_ends_long_before", "last_ends_long_before"])
def test_one_that_has_ended_is_not_lost(outcome, case):
    assert outcome(case) == ([0, 0, 0], [])


def test_one_that_reports_an_error_has_the_time_for_it(outcome):
    assert outcome("reports_an_error") == ([LOST, 2, LOST], [])
