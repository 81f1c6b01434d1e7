"""From an event in a Redis stream to its first appearance in a read, or in a score, through ``laser vault follow``.

    PYTHONPATH=benchmarks/seqvault:. python benchmarks/serve/freshness.py --events 2000 --rate 200
    PYTHONPATH=benchmarks/seqvault:. python benchmarks/serve/freshness.py --events 2000 --rate 200 --score
    PYTHONPATH=benchmarks/seqvault:. python benchmarks/serve/freshness.py --events 2000 --rate 200 --bundle PATH

Three processes: Redis, the follower, and this one, which adds events and reads them back from the vault's folder
(``refresh`` and ``read``) until each is there. With ``--bundle``, or ``--score``, which makes one from a generated log,
it scores ``--candidates`` items of one user, one request after the other; an event has arrived when the first score
whose history has it is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import redis_server, report
from served_model import make_bundle, raw_values

from laser.schema import Kind
from laser.seqvault import Field, Ragged, SeqVault
from laser.seqvault.layout import Layout
from laser.serve import Request, Scorer
from laser.serve.bundle import Bundle

USER = 7
LATER = 1 << 40


class Counted:
    """A vault that notes how many events the user read last has."""

    def __init__(self, vault: SeqVault) -> None:
        self.vault, self.layout, self.refresh, self.events = vault, vault.layout, vault.refresh, 0

    def read(self, users: Any, **options: Any) -> Ragged:
        self.events = int(self.vault.lengths(users)[0])
        return self.vault.read(users, **options)


def produce(client: Any, key: int, layout: Layout, events: int, rate: float, produced: list[float]) -> None:
    rest = {f.name: 1 if f.length == 1 else json.dumps([1] * f.length) for f in layout.fields}
    begin = time.perf_counter()
    for number in range(events):
        time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        produced.append(time.perf_counter())
        client.xadd("events", {**rest, "user": key, layout.names[0]: number})


def seen(look: Any, events: int) -> list[float]:
    """When ``look``, which returns a number of events, first knew each."""
    times: list[float] = []
    while len(times) < events:
        found = look()
        times += [time.perf_counter()] * (found - len(times))
    return times


def reading(vault: SeqVault) -> Any:
    def look() -> int:
        vault.refresh()
        return len(vault.read([USER])[vault.layout.names[0]])

    return look


def scoring(bundle: Bundle, vault: SeqVault, candidates: int) -> tuple[int, Any]:
    """The user's key in the vault, and how to score."""
    counted = Counted(vault)
    scorer = Scorer(bundle, counted)
    context = {feature.name: None for feature in scorer.schema.of_kind(Kind.CONTEXT)}
    raw = raw_values(bundle)
    items = raw[scorer.schema.item.name]
    chosen = (items * (1 + candidates // len(items)))[:candidates]
    request = Request(raw[scorer.schema.user.name][0], chosen, context, LATER)

    def look() -> int:
        scorer.score_many([request])
        return counted.events

    return scorer.coder.request(request).key, look


def main() -> None:
    import redis

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=200, help="events a second")
    parser.add_argument("--bundle", type=Path, help="that laser export wrote: score with it instead of reading")
    parser.add_argument("--score", action="store_true", help="with a bundle that is made first")
    parser.add_argument("--candidates", type=int, default=100, help="of a score")
    parser.add_argument("--redis_port", type=int, default=27_380)
    parser.add_argument("--out", type=Path, help="where to write the report, without suffix")
    options = parser.parse_args()
    produced: list[float] = []
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder) / "redis", options.redis_port):
        path = Path(folder) / "vault"
        bundle = Bundle.open(options.bundle) if options.bundle else None
        if options.score:
            bundle, _ = make_bundle(Path(folder) / "made", events=60_000, users=150, steps=50, max_history=1000)
        SeqVault.create(path, bundle.schema if bundle else [Field("time", "int64")]).close()
        source = f"redis://127.0.0.1:{options.redis_port}/0?stream=events"
        command = [sys.executable, "-m", "laser.cli", "vault", "follow", str(path), source]
        follower = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert follower.stdout is not None
        follower.stdout.readline()
        with redis.Redis(port=options.redis_port) as client, SeqVault.open(path) as vault:
            key, look = scoring(bundle, vault, options.candidates) if bundle else (USER, reading(vault))
            look()
            arguments = (client, key, vault.layout, options.events, options.rate, produced)
            producer = threading.Thread(target=produce, args=arguments, daemon=True)
            producer.start()
            delays = (np.array(seen(look, options.events)) - np.array(produced)) * 1e3
            producer.join()
        follower.terminate()
        assert follower.wait() == 0
    quantiles = {f"p{each:g} ms": float(np.percentile(delays, each)) for each in (50, 90, 99, 100)}
    report(
        "From an event to a score" if bundle else "From an event to a read",
        {"Redis stream": quantiles},
        {
            "events": options.events,
            "a second": options.rate,
            "candidates": options.candidates if bundle else "-",
        },
        options.out,
    )


if __name__ == "__main__":
    main()
