"""Sustained mixed traffic of reads, scores and appends, with memory and delays over time, and a kill in the middle.

    PYTHONPATH=benchmarks/seqvault:. python benchmarks/serve/load.py --minutes 10
    PYTHONPATH=benchmarks/seqvault:. python benchmarks/serve/load.py --minutes 10 --kill

First a log is generated and prepared, a model trained on it for a few steps and exported. Its histories go behind
``laser vault serve``, and ``laser serve`` scores with them over HTTP. Clients in processes of their own ask one request
after the other: 45 % reads of a batch of users' newest events, 45 % scores of one user's candidates, and 10 % appends
of one event for each user of a batch, all to the same histories. ``--kill`` ends both servers halfway with SIGKILL and
starts them again. Each client owns a share of the users, so that it knows what must be there: at the end every
acknowledged event is looked for, once, and the front's scores are compared with those of a scorer that has just begun.
Exits with 1 when an event is missing or stored twice, a score differs, or a server does not end well.
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
import traffic
from measuring import Service, report, resident_bytes
from served_model import Catalogue, Front, make_bundle

SLICES = 10
ROUNDING = 1e-5


class Servers:
    """The service of histories and the front before it."""

    def __init__(self, bundle: Path, vault: Path) -> None:
        self.bundle, self.vault = bundle, vault
        self.service = Service(vault)
        self.front = Front(bundle, self.service.location, vault.parent)

    def kill_and_restart(self) -> tuple[float, float]:
        """Seconds until the service is back, and the front."""
        start = time.monotonic()
        for process in (self.service.process, self.front.process):
            process.send_signal(signal.SIGKILL)
            process.wait()
        self.service = Service(self.vault, port=self.service.port)
        back = time.monotonic() - start
        self.front = Front(self.bundle, self.service.location, self.vault.parent, self.front.port)
        return back, time.monotonic() - start

    def memory(self) -> tuple[int, int]:
        return resident_bytes(self.service.process.pid), resident_bytes(self.front.process.pid)

    def stop(self) -> tuple[int, int]:
        return self.front.stop(), self.service.stop()


def watch(servers: Servers, options: argparse.Namespace) -> tuple[np.ndarray, str]:
    """Follow the memory of both, rows of (seconds, bytes, bytes); kill them halfway if asked to. Says what happened."""
    begin, memory, told = time.monotonic(), [], "no"
    while (passed := time.monotonic() - begin) < options.minutes * 60:
        memory.append((passed, *servers.memory()))
        if options.kill and told == "no" and passed > options.minutes * 30:
            service, front = servers.kill_and_restart()
            told = f"both at {passed:.0f} s; the service was back after {service:.1f} s, the front after {front:.1f} s"
        time.sleep(min(1.0, options.minutes * 2))
    return np.array(memory), told


def slices(taken: np.ndarray, memory: np.ndarray, seconds: float) -> dict[str, dict[str, float]]:
    """Figures of each tenth of the time."""
    rows = {}
    for number in range(SLICES):
        low, high = number * seconds / SLICES, (number + 1) * seconds / SLICES
        own, held = (each[(each[:, 0] >= low) & (each[:, 0] < high)] for each in (taken, memory))
        rows[f"{low:.0f} ... {high:.0f} s"] = figures(own, held, high - low)
    return rows | {"all": figures(taken, memory, seconds)}


def figures(taken: np.ndarray, memory: np.ndarray, seconds: float) -> dict[str, float]:
    row = {"requests/s": len(taken) / seconds}
    for place, name in enumerate(traffic.KINDS):
        durations = taken[taken[:, 2] == place, 1] * 1e3
        for quantile in (50, 99, 99.9):
            row[f"{name} p{quantile:g} ms"] = float(np.percentile(durations, quantile)) if len(durations) else np.nan
    service, front = memory[:, 1:].max(axis=0, initial=0) / 2**20
    return row | {"service MiB": service, "front MiB": front}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--events", type=int, default=1_000_000, help="of the log")
    parser.add_argument("--steps", type=int, default=200, help="that the model is trained")
    parser.add_argument("--max_history", type=int, default=1000, help="newest events that are read and seen")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="users of a read and of an append")
    parser.add_argument("--candidates", type=int, default=100, help="of a score")
    parser.add_argument("--kill", action="store_true", help="kill both servers halfway with SIGKILL, and restart them")
    parser.add_argument("--out", type=Path, help="where to write the report, without suffix")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        bundle, vault = make_bundle(Path(folder), options.events, options.users, options.steps, options.max_history)
        catalogue = Catalogue.of(bundle, vault)
        servers, context = Servers(bundle.path, vault), multiprocessing.get_context("spawn")
        out: Any = context.Queue()
        ready = context.Barrier(options.clients + 1)
        shares = [np.arange(len(catalogue.users))[number :: options.clients] for number in range(options.clients)]
        where = (servers.service.location, servers.front.port, options, ready, out)
        clients = [
            context.Process(target=traffic.run, args=(number, catalogue, share, *where))
            for number, share in enumerate(shares)
        ]
        for process in clients:
            process.start()
        ready.wait()
        memory, killed = watch(servers, options)
        found = [out.get(timeout=300) for _ in clients]
        for process in clients:
            process.join()
        difference = traffic.largest_difference(bundle, vault, catalogue, servers.front.port, options.candidates)
        codes = servers.stop()
        acknowledged = [each for _, _, appends, _ in found for each in appends]
        missing, double = traffic.missing_or_double(vault, catalogue, acknowledged)
    told = {name: value for name, value in vars(options).items() if name not in ("out", "kill")} | {
        "killed and restarted": killed, "events acknowledged": sum(len(times) for _, times in acknowledged),
        "of these missing, stored twice": f"{missing}, {double}", "calls that failed": sum(each[3] for each in found),
        "largest difference of a score to a new scorer's": f"{difference:.1e}",
        "exit codes of front and service at the end": f"{codes[0]}, {codes[1]}",
    }  # fmt: skip
    taken = np.concatenate([each[1] for each in found])
    report("Mixed traffic", slices(taken, memory, options.minutes * 60), told, options.out)
    return 0 if missing == double == 0 and codes == (0, 0) and difference < ROUNDING else 1


if __name__ == "__main__":
    raise SystemExit(main())
