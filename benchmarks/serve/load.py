"""Sustained mixed traffic on a service, with its memory and delays over time, and with a kill in the middle.

    PYTHONPATH=benchmarks/seqvault python benchmarks/serve/load.py --minutes 10
    PYTHONPATH=benchmarks/seqvault python benchmarks/serve/load.py --minutes 10 --kill

Clients in processes of their own ask one request after the other: 90 % reads of a batch of users, newest 1000 events,
and 10 % appends of events of such users. Each client owns a share of the users, so that it knows what must be there. At
the end every event that was acknowledged is looked for, once. Exits with 1 when one is missing or stored twice.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import TOKEN, Service, report, resident_bytes
from workload import FIELDS, LAST_N, READ, Workload

from laser.seqvault import SeqVault
from laser.seqvault.service import RemoteVault

APPENDED = 1 << 40
"""Timestamps of appended events begin here; they count up for each client."""
SLICES = 10


def client(number: int, location: str, users: np.ndarray, options: argparse.Namespace, ready: Any, out: Any) -> None:
    """One client; sends back (seconds from the start, duration, whether a read), and what is acknowledged."""
    rng, taken, acknowledged, failures = np.random.default_rng(number), [], [], 0
    next_event, unsure = APPENDED, None
    with RemoteVault(location, TOKEN, timeout=60) as vault:
        vault.read(users[: options.batch], last_n=LAST_N, fields=READ)
        ready.wait()
        begin = time.monotonic()
        while (now := time.monotonic()) < begin + options.minutes * 60:
            reads = unsure is None and rng.random() < 0.9
            chosen = unsure[0] if unsure else rng.choice(users, options.batch)
            try:
                if reads:
                    vault.read(chosen, last_n=LAST_N, fields=READ)
                else:
                    times = unsure[1] if unsure else next_event + np.arange(len(chosen))
                    unsure = (chosen, times)
                    vault.append(chosen, event_at(times))
                    acknowledged.append((chosen, times))
                    next_event, unsure = int(times[-1]) + 1, None
                taken.append((now - begin, time.monotonic() - now, reads))
            except OSError:
                failures += 1  # an append is repeated with the same events: the vault drops what it has
                time.sleep(0.05)
    out.put((number, np.array(taken, np.float64), acknowledged, failures))


def event_at(times: np.ndarray) -> dict[str, np.ndarray]:
    return {
        field.name: times.astype(field.dtype) if field.name == "time" else (times % 7).astype(field.dtype)
        for field in FIELDS
    }


def missing_or_double(path: Path, acknowledged: list[tuple[np.ndarray, np.ndarray]]) -> tuple[int, int]:
    """Acknowledged events that are not there, and events that are there twice."""
    users, times = (np.concatenate(each) for each in zip(*acknowledged))
    missing = double = 0
    with SeqVault.open(path) as vault:
        for user in np.unique(users):
            stored = vault.read([user], fields=["time"])["time"]
            stored = stored[stored >= APPENDED]
            double += len(stored) - len(np.unique(stored))
            missing += len(np.setdiff1d(times[users == user], stored))
    return missing, double


def watch(service: Service, path: Path, options: argparse.Namespace) -> tuple[Service, list[tuple[float, int]], float]:
    """Follow the service's memory; kill and restart it halfway if asked to. Returns how long it was away, too."""
    begin, memory, away = time.monotonic(), [], 0.0
    while (passed := time.monotonic() - begin) < options.minutes * 60:
        memory.append((passed, resident_bytes(service.process.pid)))
        if options.kill and not away and passed > options.minutes * 30:
            start = time.monotonic()
            service.process.send_signal(signal.SIGKILL)
            service.process.wait()
            service = Service(path, port=service.port)
            away = time.monotonic() - start
        time.sleep(min(1.0, options.minutes * 2))
    return service, memory, away


def slices(taken: np.ndarray, memory: list[tuple[float, int]], seconds: float) -> dict[str, dict[str, float]]:
    """Figures of each tenth of the time."""
    rows = {}
    for number in range(SLICES):
        low, high = number * seconds / SLICES, (number + 1) * seconds / SLICES
        own = taken[(taken[:, 0] >= low) & (taken[:, 0] < high)]
        rows[f"{low:.0f} ... {high:.0f} s"] = figures(own, high - low) | {
            "MiB": max((size for at, size in memory if low <= at < high), default=0) / 2**20
        }
    return rows | {"all": figures(taken, seconds) | {"MiB": max(size for _, size in memory) / 2**20}}


def figures(taken: np.ndarray, seconds: float) -> dict[str, float]:
    row = {"requests/s": len(taken) / seconds}
    for name, kind in (("read", 1), ("append", 0)):
        durations = taken[taken[:, 2] == kind, 1] * 1e3
        for quantile in (50, 99, 99.9):
            row[f"{name} p{quantile:g} ms"] = float(np.percentile(durations, quantile)) if len(durations) else np.nan
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--kill", action="store_true", help="kill the service halfway with SIGKILL, and start it again")
    parser.add_argument("--out", type=Path, help="where to write the report, without suffix")
    options = parser.parse_args()
    workload = Workload.of(options.users, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vault"
        with SeqVault.create(path, FIELDS, duplicates="drop") as vault:
            for users, lengths, events in workload.blocks():
                vault.append(np.repeat(users, lengths), events)
        service, context = Service(path), multiprocessing.get_context("spawn")
        out: Any = context.Queue()
        ready = context.Barrier(options.clients + 1)
        shares = [workload.users[number :: options.clients] for number in range(options.clients)]
        clients = [
            context.Process(target=client, args=(number, service.location, share, options, ready, out))
            for number, share in enumerate(shares)
        ]
        for process in clients:
            process.start()
        ready.wait()
        service, memory, away = watch(service, path, options)
        found = [out.get(timeout=300) for _ in clients]
        for process in clients:
            process.join()
        code = service.stop()
        acknowledged = [each for _, _, appends, _ in found for each in appends]
        missing, double = missing_or_double(path, acknowledged)
    told = {
        "users": options.users, "clients": options.clients, "users a request": options.batch,
        "killed and restarted": f"after half the time, away {away:.2f} s" if options.kill else "no",
        "events acknowledged": sum(len(times) for _, times in acknowledged),
        "of these missing, stored twice": f"{missing}, {double}", "calls that failed": sum(each[3] for each in found),
        "exit code of the service at the end": code,
    }  # fmt: skip
    report(
        "Mixed traffic",
        slices(np.concatenate([each[1] for each in found]), memory, options.minutes * 60),
        told,
        options.out,
    )
    return 0 if missing == double == code == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
