"""Memory of a reader follows the budget that it is given, not the data; dictionaries take a known size more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import Field, SeqVault

FIELDS = (Field("time", "int64"), Field("item", "int64"), Field("action", "uint8"))
USERS = 2000
MiB = 1 << 20
READER = """
import sys
from pathlib import Path
import numpy as np
from laser.seqvault import SeqVault

def private() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

path, cache_bytes = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(3)
with SeqVault.open(sys.argv[3], cache_bytes=cache_bytes) as small:
    for _ in range(2):
        assert small.read(range(int(sys.argv[4])), last_n=50).offsets[-1] > 0  # kernels are loaded
start = private()
with SeqVault.open(path, cache_bytes=cache_bytes) as vault:
    events = 0
    for _ in range(300):
        events += int(vault.read(rng.integers(0, int(sys.argv[4]), 32), last_n=100).offsets[-1])
    print(events, private() - start, vault.stats()["memory_bytes"])
"""


def make(path: Path, events: int, dictionaries: list[str]) -> Path:
    rng = np.random.default_rng(5)
    with SeqVault.create(path, FIELDS, dictionaries=dictionaries) as vault:
        columns = {"time": np.arange(events), "item": rng.integers(0, 2**62, events)}
        vault.append(rng.integers(0, USERS, events), columns | {"action": np.zeros(events, np.uint8)})
        vault.checkpoint()
    return path


def read_apart(path: Path, cache_bytes: int, warm: Path) -> tuple[int, int, int]:
    """Events read, growth of the process's own memory, and what the vault says of it."""
    command = [sys.executable, "-c", READER, str(path), str(cache_bytes), str(warm), str(USERS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    events, grown, said = map(int, done.stdout.split())
    return events, grown, said


@pytest.mark.parametrize("cache_bytes", [0, 4 * MiB])
def test_two_million_events_take_the_budget_of_the_cache_alone(tmp_path: Path, cache_bytes: int) -> None:
    """Half of the budget more is left for gaps between chunks of many sizes; without a budget they take 35 MB."""
    warm, path = make(tmp_path / "warm", 1000, []), make(tmp_path / "vault", 2_000_000, [])
    read, grown, _ = read_apart(path, cache_bytes, warm)
    assert read > 900_000
    assert grown < 1.5 * cache_bytes + 2 * MiB


def test_a_dictionary_takes_its_ids(tmp_path: Path) -> None:
    warm = make(tmp_path / "warm", 1000, ["item"])
    path = make(tmp_path / "vault", 500_000, ["item"])
    _, grown, said = read_apart(path, 0, warm)
    with SeqVault.open(path) as vault:
        ids = len(vault.dictionary("item"))
    assert 8 * ids <= said < 9 * ids + MiB
    assert grown < said + 8 * ids + 8 * MiB  # the file's bytes are there beside the ids while these are loaded


@pytest.mark.parametrize("saved", [True, False])
def test_the_index_takes_at_most_40_bytes_a_user(tmp_path: Path, saved: bool) -> None:
    """Of users with one chunk: 32 for its row, the rest for the table."""
    users = np.random.default_rng(6).integers(0, 2**64, 30_000, np.uint64)
    with SeqVault.create(tmp_path / "vault", FIELDS, maintenance_rate=0) as vault:
        columns = {"time": np.arange(30_000), "item": np.arange(30_000), "action": np.zeros(30_000, np.uint8)}
        vault.append(users, columns)
        vault.checkpoint()
        if saved:
            vault._writing().save_index()
        assert vault.stats()["users"] == 30_000
        assert vault.stats()["index_bytes_per_user"] <= (37 if saved else 40)
        vault.append(users[:10_000], {name: values[:10_000] for name, values in columns.items()})
        vault.compact()
        assert vault.read(users[:2]).lengths.tolist() == [2, 2]
