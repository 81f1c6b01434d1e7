"""Packed chunks in a cluster of six Redis servers against blobs in the same cluster, and the vault in a folder.

    PYTHONPATH=benchmarks/seqvault:. python benchmarks/serve/cluster.py --users 20000

Three primaries with a replica each, on loopback, all on this machine: figures tell the cost of the encoding and of the
round trips, not what a cluster of machines serves.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from blobs import BlobsInRedis
from measuring import interleaved, report
from workload import FIELDS, LAST_N, READ, Events, Workload

from laser.seqvault import SeqVault
from laser.seqvault.cluster import ClusterVault
from tests.seqvault.cluster.conftest import NODES, Cluster, free_ports

APPENDS = 500


def reading(vault: Any) -> Any:
    def read(users: np.ndarray) -> int:
        return int(vault.read(users, last_n=LAST_N, fields=READ).offsets[-1])

    return read


def appends(append: Any, workload: Workload) -> dict[str, float]:
    """Single events of users as they are asked for, one call each."""
    rng = np.random.default_rng(5)
    users = workload.users[rng.choice(len(workload.users), APPENDS, p=workload.popularity)]
    times = []
    for number, user in enumerate(users.tolist()):
        event = {
            field.name: np.array([number + 1_800_000_000 if field.name == "time" else 7], field.dtype)
            for field in FIELDS
        }
        start = time.perf_counter()
        append(user, event)
        times.append(time.perf_counter() - start)
    return {"append p50 ms": float(np.median(times)) * 1e3, "append p99 ms": float(np.percentile(times, 99)) * 1e3}


def used_bytes(cluster: Cluster) -> int:
    """Memory of all primaries."""
    ports = {cluster.owner(slot) for slot in (0, 8000, 16383)}
    return sum(cluster.ask(port, "INFO", "memory")["used_memory"] for port in ports)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--chunk_events", type=int, default=500)
    parser.add_argument("--out", type=Path, help="where to write the report, without suffix")
    options = parser.parse_args()
    workload = Workload.of(options.users, 0)
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder), free_ports(NODES))
        try:
            for port in cluster.ports:
                cluster.start(port)
            cluster.form()
            rows = measure(Path(folder) / "vault", cluster, workload, options)
        finally:
            cluster.stop()
    told = {"users": options.users, "events": int(workload.lengths.sum()), "events a chunk": options.chunk_events}
    report("Histories in a cluster", rows, told, options.out)


def measure(
    path: Path, cluster: Cluster, workload: Workload, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    import redis

    events = int(workload.lengths.sum())
    processes = [process.pid for process in cluster.processes.values()]
    empty = used_bytes(cluster)
    client = redis.RedisCluster("127.0.0.1", cluster.ports[0])
    blobs = BlobsInRedis(client, cluster=True)
    blobs.build(workload)
    with_blobs = used_bytes(cluster)
    spread = ClusterVault.create(cluster.nodes, "bench", FIELDS, chunk_events=options.chunk_events, timeout=60)
    with spread, SeqVault.create(path, FIELDS) as embedded:
        for users, lengths, block in workload.blocks():
            for vault in (spread, embedded):
                vault.append(np.repeat(users, lengths), block)
        embedded.checkpoint()
        with_chunks = used_bytes(cluster)
        ways: dict[str, Any] = {
            "embedded": (reading(embedded), [], []),
            "chunks in the cluster": (reading(spread), processes, cluster.ports),
            "blobs in the cluster": (blobs.read, processes, cluster.ports),
        }
        rows = interleaved(ways, workload.batches(options.batches, 1))
        rows["embedded"]["bytes/event"] = embedded.stats()["bytes_per_event"]
        rows["chunks in the cluster"]["bytes/event"] = (with_chunks - with_blobs) / events
        rows["blobs in the cluster"]["bytes/event"] = (with_blobs - empty) / events
        rows["embedded"] |= appends(lambda user, event: embedded.append([user], event), workload)
        rows["chunks in the cluster"] |= appends(lambda user, event: spread.append([user], event), workload)
        rows["blobs in the cluster"] |= appends(lambda user, event: _append_to_blob(client, user, event), workload)
    client.close()
    return rows


def _append_to_blob(client: Any, user: int, event: Events) -> None:
    """Read, add, write, without regard to others who do the same."""
    from engines import Unpacker, pack_blob

    old = Unpacker()(client.get(f"blob:{user}"))
    client.set(f"blob:{user}", pack_blob({name: np.concatenate([old[name], event[name]]) for name in event}))


if __name__ == "__main__":
    main()
