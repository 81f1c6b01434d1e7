"""What only a store that writes has: appends while others read, replay of the log, opening, memory.

Every figure is of processes of their own, as in use: one writes, another reads.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from workload import LAST_N, READ, Events, Recorded, Workload

from laser.seqvault import SeqVault

BATCH_EVENTS = 1024
SECONDS = 15.0


def own_figures(folder: Path, workload: Workload | Recorded) -> dict[str, float]:
    """Figures of the vault in ``folder``, which grows by what is appended."""
    batches = workload.batches(40, workload.seed + 5)
    np.save(folder.parent / "batches.npy", np.stack(batches))
    alone = _report(_reader(folder, SECONDS / 3))
    beside = _reader(folder, SECONDS)
    written = append_batches(folder, workload, SECONDS)
    during = _report(beside)
    singles = append_singles(folder, workload, SECONDS / 5)
    figures = {
        "single appends/s, newest event read back": singles["per second"],
        "CPU us per single append": singles["CPU us"],
        "CPU us per event appended in batches": written["CPU us"],
        "batched appends/s, reads going on": written["per second"],
        "longest append ms": written["longest ms"],
        "read p50 ms, alone": alone["p50"],
        "read p99 ms, alone": alone["p99"],
        "read p50 ms, appends going on": during["p50"],
        "read p99 ms, appends going on": during["p99"],
        "reader's memory MB": during["rss_mb"],
    }
    figures |= {"replay events/s": replay(folder.parent / "replay", 1000)}
    figures |= {"replay events/s, appended one by one": replay(folder.parent / "replay_singles", 1)}
    with SeqVault.open(folder) as vault:
        stats = vault.stats()
        figures |= {f"stats: {name}": value for name, value in stats.items()}
    return figures


def append_batches(folder: Path, workload: Workload | Recorded, seconds: float) -> dict[str, float]:
    """Rate of appends by batches, checkpoints and maintenance included, each 64th batch read back; longest append."""
    events = _events(BATCH_EVENTS, 1)
    rng = np.random.default_rng(3)
    count, longest = 0, 0.0
    with SeqVault.open(folder, "a", sync="interval") as vault:
        events["time"] += vault.read(workload.users, last_n=1, fields=["time"])["time"].max()
        start, used = time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            events["time"] = events["time"] + BATCH_EVENTS
            users = rng.choice(workload.users, BATCH_EVENTS)
            began = time.perf_counter()
            vault.append(users, events)
            longest = max(longest, time.perf_counter() - began)
            count += BATCH_EVENTS
            if count % (64 * BATCH_EVENTS) == 0:
                assert vault.read(users[-1:], last_n=1)["time"][-1] == events["time"][-1]
        elapsed, used = time.perf_counter() - start, time.process_time() - used
    return {"per second": count / elapsed, "longest ms": 1e3 * longest, "CPU us": 1e6 * used / count}


def append_singles(folder: Path, workload: Workload | Recorded, seconds: float) -> dict[str, float]:
    """Rate of appends of one event, maintenance included, the newest event of each 16th user read back."""
    event = {name: values[0] for name, values in _events(1, 2).items()}
    users = np.random.default_rng(6).choice(workload.users, 4096).tolist()
    with SeqVault.open(folder, "a", sync="interval") as vault:
        newest, count = int(vault.read(workload.users, last_n=1, fields=["time"])["time"].max()), 0
        start, used = time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            for _ in range(16):
                event["time"] = newest + count
                user = users[count % 4096]
                vault.append_one(user, event)
                count += 1
            assert vault.read([user], last_n=1, fields=["time"])["time"][-1] == event["time"]
        elapsed, used = time.perf_counter() - start, time.process_time() - used
    return {"per second": count / elapsed, "CPU us": 1e6 * used / count}


def replay(folder: Path, at_once: int) -> float:
    """Events a second when a vault is opened whose writer was killed with a million events only in its log."""
    program = (
        "import sys, os; sys.path[:0] = [sys.argv[1]]; from writes import fill_and_die; "
        "fill_and_die(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))"
    )
    events = 1_000_000
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(folder), str(events), str(at_once)]
    assert subprocess.run(command, check=False).returncode == -9
    start = time.perf_counter()
    with SeqVault.open(folder, "a") as vault:
        elapsed = time.perf_counter() - start
        assert vault.stats()["events"] == events
    return events / elapsed


def fill_and_die(folder: str, events: int, at_once: int) -> None:
    """Append to a new vault without a checkpoint, then die by SIGKILL."""
    import os
    import signal

    from workload import FIELDS

    rng = np.random.default_rng(4)
    vault = SeqVault.create(folder, FIELDS, tail_bytes=1 << 31)
    if at_once == 1:
        users, columns = rng.integers(0, 20_000, 1000).tolist(), _events(1000, 0)
        rows = [{name: values[i] for name, values in columns.items()} for i in range(1000)]
        for i in range(events):
            vault.append_one(users[i % 1000], rows[i % 1000] | {"time": 5_000_000_000 + i})
    else:
        for i in range(0, events, at_once):
            vault.append(rng.integers(0, 20_000, at_once), _events(at_once, i))
    vault.sync()
    os.kill(os.getpid(), signal.SIGKILL)


def read_for(folder: str, batches: str, seconds: float) -> dict[str, float]:
    """Latency of reads for some seconds, refreshed before each, in milliseconds."""
    asked, times = np.load(batches), []
    with SeqVault.open(folder) as vault:
        for batch in asked[:10]:
            vault.read(batch, last_n=LAST_N, fields=READ)
        end, i = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            vault.refresh()
            start = time.perf_counter()
            vault.read(asked[i % len(asked)], last_n=LAST_N, fields=READ)
            times.append(time.perf_counter() - start)
            i += 1
    status = Path("/proc/self/status").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    return {"p50": np.percentile(times, 50) * 1e3, "p99": np.percentile(times, 99) * 1e3, "rss_mb": rss / 1024}


def _reader(folder: Path, seconds: float) -> subprocess.Popen[str]:
    program = (
        "import sys, json; sys.path[:0] = [sys.argv[1]]; from writes import read_for; "
        "print(json.dumps(read_for(sys.argv[2], sys.argv[3], float(sys.argv[4]))))"
    )
    batches = folder.parent / "batches.npy"
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(folder), str(batches), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _report(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    assert process.returncode == 0, "the reading process failed"
    return json.loads(output)


def _events(count: int, seed: int) -> Events:
    block = next(Workload.of(1000, 9).blocks())[2]
    events = {name: values[:count].copy() for name, values in block.items()}
    events["time"] = np.arange(count, dtype=np.int64) + 5_000_000_000 + seed
    return events
