"""A writer killed at a random moment, and a disk that fills: whatever was acknowledged is there, in order, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import Field, SeqVault

FIELDS = (Field("time", "int64"), Field("item", "uint32"))
USERS = 8
FLEETING = 8
"""A user who is deleted again and again."""
WRITER = """
import sys
import numpy as np
from laser.seqvault import SeqVault

path, sync = sys.argv[1:]
rng = np.random.default_rng()
rate = [None, 300_000.0, 0][rng.integers(3)]
with SeqVault.open(path, "a", sync=sync, tail_bytes=20_000, maintenance_rate=rate, low_water=0.9) as vault:
    number = int(vault.read(np.arange(8)).offsets[-1])
    assert number % 8 == 0
    fleeting = vault.read([8])["time"]
    begin, end = (int(fleeting[0]), int(fleeting[-1]) + 1) if len(fleeting) else (number, number)
    print(f"open {number} {begin} {end}", flush=True)
    while True:
        size = int(rng.choice([8, 8, 8, 64, 800, 140_000], p=[0.3, 0.3, 0.2, 0.1, 0.08, 0.02]))
        times = np.arange(number, number + size)
        vault.append(times % 8, {"time": times, "item": times.astype(np.uint32)})
        number += size
        if rng.random() < 0.3:
            vault.append([8], {"time": [end], "item": [end]})
            end += 1
        elif rng.random() < 0.1:
            vault.delete_user(8)
            begin = end
        print(number, begin, end, flush=True)
        if rng.random() < 0.02:
            vault.compact()
        if rng.random() < 0.3:
            vault.checkpoint()
"""


def start_writer(path: Path, sync: str) -> tuple[subprocess.Popen, str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITER, str(path), sync]
    # Without a buffer: what a buffer had read beyond this line would be missing from the output to come.
    process = subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    assert line.startswith("open"), process.stderr and process.stderr.read()
    return process, line.strip()


def assert_fleeting(found: np.ndarray, begin: int, end: int) -> None:
    """The user has the events from ``begin`` to ``end``, or what one more append or deletion makes of them."""
    times = found.tolist()
    assert times in ([], list(range(begin, end)), list(range(begin, end + 1)))


def assert_oracle(path: Path, acknowledged: int, fleeting: tuple[int, int] | None = None) -> int:
    """Every user's events are the first so many, in order, once; at least the acknowledged ones; returns how many."""
    with SeqVault.open(path) as vault:
        found = vault.read(np.arange(USERS))
        total = int(found.offsets[-1])
        assert total >= acknowledged
        assert total % USERS == 0
        for user in range(USERS):
            expected = np.arange(user, total, USERS)
            np.testing.assert_array_equal(found.of(user)["time"], expected)
            np.testing.assert_array_equal(found.of(user)["item"], expected)
        if fleeting is not None:
            assert_fleeting(vault.read([FLEETING])["time"], *fleeting)
        assert vault.check() == []
    return total


def kill_repeatedly(path: Path, rounds: int, rng: np.random.Generator) -> int:
    SeqVault.create(path, FIELDS).close()
    total = 0
    for round_ in range(rounds):
        process, opened = start_writer(path, ("always", "interval", "none")[round_ % 3])
        time.sleep(float(rng.uniform(0, 0.4)))
        process.send_signal(signal.SIGKILL)
        output, errors = process.communicate()
        assert errors == b""
        lines = [line.removeprefix("open ") for line in [opened, *output.decode().split("\n")[:-1]]]
        acknowledged, *fleeting = map(int, lines[-1].split())
        total = assert_oracle(path, acknowledged, (fleeting[0], fleeting[1]))
    return total


def test_killed_writers_lose_nothing_acknowledged(path: Path, rng: np.random.Generator) -> None:
    assert kill_repeatedly(path, 8, rng) > 0


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_writers_many_times(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    end = time.monotonic() + 1200
    vaults = 0
    while time.monotonic() < end:
        kill_repeatedly(tmp_path / f"vault{vaults}", 40, rng)
        vaults += 1


FILLER = """
import os, pathlib, resource, signal, sys, warnings
import numpy as np
from laser.seqvault import SeqVault

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, mode = sys.argv[1:]
with SeqVault.open(path, "a", sync="none", tail_bytes=40_000 if mode == "flush" else 1 << 30) as vault:
    number, failed = vault.stats()["events"], 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000 if mode == "compact" else 30_000, resource.RLIM_INFINITY))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60):
            times = np.arange(number, number + 160)
            try:
                vault.append(times % 8, {"time": times, "item": times.astype(np.uint32)})
                number += 160
            except OSError:
                failed += 1
            lengths = vault.read(np.arange(8)).lengths
            assert lengths.sum() == number, (lengths, number)
    if mode == "compact":
        try:
            vault.compact()
        except OSError:
            pass
        else:
            sys.exit("the limit did not stop the compaction")
        assert vault.read(np.arange(8)).lengths.sum() == number
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert failed, "the limit was never met"
    times = np.arange(number, number + 8)
    vault.append(times % 8, {"time": times, "item": times.astype(np.uint32)})
    print(number + 8, flush=True)
    if mode == "append":
        os._exit(0)  # what lies in the log now must be whole
    assert len(list(pathlib.Path(path).glob("*.seg"))) == vault.stats()["segments"]  # nothing half-written stays
    vault.checkpoint()
"""


@pytest.mark.parametrize("mode", ["append", "flush", "compact"])
def test_full_disk_keeps_everything_readable_and_goes_on(path: Path, mode: str) -> None:
    SeqVault.create(path, FIELDS).close()
    if mode == "compact":
        with SeqVault.open(path, "a") as vault:
            times = np.arange(8000)
            vault.append(times % 8, {"time": times, "item": times.astype(np.uint32)})
            vault.checkpoint()
    command = [sys.executable, "-c", FILLER, str(path), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert assert_oracle(path, int(done.stdout)) == int(done.stdout)
