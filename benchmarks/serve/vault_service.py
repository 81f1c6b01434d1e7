"""A vault behind a service against the same vault in a folder, and blobs in Redis.

    PYTHONPATH=benchmarks/seqvault python benchmarks/serve/vault_service.py --users 200000

Batches of 256 users, the newest 1000 events, 6 columns. All ways read each batch in turn. Everything goes over
loopback: what a real network adds is its delay, and the wire bytes over its rate.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from blobs import BlobsInRedis
from measuring import TOKEN, Service, interleaved, redis_server, report
from workload import FIELDS, LAST_N, READ, Workload

from laser.seqvault import SeqVault
from laser.seqvault.service import RemoteVault


def reading(vault: Any, **options: Any) -> Any:
    def read(users: np.ndarray) -> int:
        return int(vault.read(users, last_n=LAST_N, fields=READ, **options).offsets[-1])

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000, help="200000 is full scale")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--redis_port", type=int, default=27_379)
    parser.add_argument("--out", type=Path, help="where to write the report, without suffix")
    options = parser.parse_args()
    workload = Workload.of(options.users, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vault"
        with SeqVault.create(path, FIELDS) as vault:
            for users, lengths, events in workload.blocks():
                vault.append(np.repeat(users, lengths), events)
        rows = measure(path, workload, options)
    told = {"users": options.users, "batches": options.batches, "users a batch": len(workload.batches(1, 1)[0])}
    report("Reads through a service", rows, told, options.out)


def measure(path: Path, workload: Workload, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    import redis

    service = Service(path)
    served = ([service.process.pid], [service.port])
    with (
        redis_server(path.parent / "redis", options.redis_port) as process,
        redis.Redis(port=options.redis_port) as client,
        SeqVault.open(path) as embedded,
        RemoteVault(service.location, TOKEN) as remote,
        RemoteVault(service.location, TOKEN, zstd=True) as compressed,
    ):
        blobs = BlobsInRedis(client, cluster=False)
        blobs.build(workload)
        ways: dict[str, Any] = {
            "embedded": (reading(embedded), [], []),
            "service": (reading(remote), *served),
            "service, codes": (reading(remote, ids="codes"), *served),
            "service, zstd": (reading(compressed), *served),
            "blobs in Redis": (blobs.read, [process.pid], [options.redis_port]),
        }
        rows = interleaved(ways, workload.batches(options.batches, 1))
    assert service.stop() == 0
    return rows


if __name__ == "__main__":
    main()
