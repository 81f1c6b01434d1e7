"""From an event in a Redis stream to its first appearance in a read, through ``laser vault follow``.

    PYTHONPATH=benchmarks/seqvault python benchmarks/serve/freshness.py --events 2000 --rate 200

Three processes: Redis, the follower, and this one, which adds events and reads them back from the vault's folder
(``refresh`` and ``read``) until each is there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import redis_server, report

from laser.seqvault import Field, SeqVault

USER = 7


def produce(client: Any, events: int, rate: float, produced: list[float]) -> None:
    begin = time.perf_counter()
    for number in range(events):
        time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        produced.append(time.perf_counter())
        client.xadd("events", {"user": USER, "time": number})


def seen(path: Path, events: int) -> list[float]:
    """When each event was first read."""
    times: list[float] = []
    with SeqVault.open(path) as vault:
        while len(times) < events:
            vault.refresh()
            found = len(vault.read([USER])["time"])
            times += [time.perf_counter()] * (found - len(times))
    return times


def main() -> None:
    import redis

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=200, help="events a second")
    parser.add_argument("--redis_port", type=int, default=27_380)
    parser.add_argument("--out", type=Path, help="where to write the report, without suffix")
    options = parser.parse_args()
    produced: list[float] = []
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder) / "redis", options.redis_port):
        path = Path(folder) / "vault"
        SeqVault.create(path, [Field("time", "int64")]).close()
        source = f"redis://127.0.0.1:{options.redis_port}/0?stream=events"
        command = [sys.executable, "-m", "laser.cli", "vault", "follow", str(path), source]
        follower = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert follower.stdout is not None
        follower.stdout.readline()
        with redis.Redis(port=options.redis_port) as client:
            arguments = (client, options.events, options.rate, produced)
            producer = threading.Thread(target=produce, args=arguments, daemon=True)
            producer.start()
            delays = (np.array(seen(path, options.events)) - np.array(produced)) * 1e3
            producer.join()
        follower.terminate()
        assert follower.wait() == 0
    quantiles = {f"p{each:g} ms": float(np.percentile(delays, each)) for each in (50, 90, 99, 100)}
    report(
        "From an event to a read",
        {"Redis stream": quantiles},
        {"events": options.events, "a second": options.rate},
        options.out,
    )


if __name__ == "__main__":
    main()
