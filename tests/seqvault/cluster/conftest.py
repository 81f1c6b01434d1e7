"""A real cluster on this machine: three primaries, each with a replica."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

try:
    import redis
except ImportError:
    redis = None
NODES = 6
SERVER = os.environ.get("REDIS_SERVER", "redis-server")
"""Program of a node: valkey-server will do."""


@dataclass
class Cluster:
    """Redis servers that form a cluster."""

    folder: Path
    ports: list[int]
    processes: dict[int, subprocess.Popen] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.ports]

    def start(self, port: int) -> None:
        folder = self.folder / str(port)
        folder.mkdir(parents=True, exist_ok=True)
        command = [SERVER, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        command += [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--cluster-replica-validity-factor",
            "0",
        ]
        command += ["--appendonly", "yes", "--save", "", "--loglevel", "warning", "--repl-diskless-sync-delay", "0"]
        with (folder / "log").open("ab") as log:
            self.processes[port] = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: self.ask(port, "PING") in (b"PONG", True), f"{SERVER} on {port} did not start")

    def kill(self, port: int) -> None:
        self.processes[port].send_signal(signal.SIGKILL)
        self.processes.pop(port).wait()

    def ask(self, port: int, *command: object) -> Any:
        with redis.Redis(port=port, socket_timeout=5) as client, contextlib.suppress(redis.exceptions.ConnectionError):
            return client.execute_command(*command)
        return None

    def form(self) -> None:
        """Slots to the first three, a replica for each."""
        for index, port in enumerate(self.ports):
            self.ask(port, "CLUSTER SET-CONFIG-EPOCH", index + 1)
        for port in self.ports[1:]:
            self.ask(port, "CLUSTER MEET", "127.0.0.1", self.ports[0])
        for index, port in enumerate(self.ports[:3]):
            first, last = index * 16384 // 3, (index + 1) * 16384 // 3
            self.ask(port, "CLUSTER ADDSLOTS", *range(first, last))
        wait_until(lambda: all(self.known(port) == NODES for port in self.ports), "the nodes did not meet")
        for primary, replica in zip(self.ports[:3], self.ports[3:]):
            self.ask(replica, "CLUSTER REPLICATE", self.id_of(primary))
        self.wait_ready()

    def known(self, port: int) -> int:
        return len((self.ask(port, "CLUSTER MYID") and self.raw(port, "NODES").splitlines()) or ())

    def raw(self, port: int, what: str) -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as opened, opened.makefile("rwb") as stream:
            stream.write(f"CLUSTER {what}\r\n".encode())
            stream.flush()
            size = int(stream.readline()[1:])
            return stream.read(size).decode()

    def id_of(self, port: int) -> str:
        return self.ask(port, "CLUSTER MYID").decode()

    def wait_ready(self) -> None:
        """Until all nodes agree that all is well, and every primary has a replica that follows."""

        def ready() -> bool:
            if not all("cluster_state:ok" in self.raw(port, "INFO") for port in self.ports):
                return False
            lines = [line for port in self.ports for line in self.raw(port, "NODES").splitlines()]
            if any("fail" in line.split()[2] or "disconnected" in line for line in lines):
                return False
            primaries = [port for port in self.ports if self.ask(port, "ROLE")[0] == b"master"]
            return len(primaries) == 3 and all(len(self.ask(port, "ROLE")[2]) == 1 for port in primaries)

        wait_until(ready, "the cluster did not become ready")

    def owner(self, slot: int) -> int:
        """Port of the primary that has a slot."""
        for line in self.raw(self.alive(), "NODES").splitlines():
            parts = line.split()
            if "master" in parts[2] and "fail" not in parts[2]:
                for part in parts[8:]:
                    low, _, high = part.partition("-")
                    if low.isdigit() and int(low) <= slot <= int(high or low):
                        return int(parts[1].partition("@")[0].rpartition(":")[2])
        raise AssertionError(f"nobody has slot {slot}")

    def alive(self) -> int:
        return next(iter(self.processes))

    def move_slot(self, slot: int, source: int, target: int, pause: float = 0.0) -> None:
        """Move a slot as redis-cli does, key by key."""
        self.ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", self.id_of(target))
        while keys := self.ask(source, "CLUSTER GETKEYSINSLOT", slot, 10):
            for key in keys:
                self.ask(source, "MIGRATE", "127.0.0.1", target, key, 0, 5000)
                time.sleep(pause)
        for port in (target, source):
            self.ask(port, "CLUSTER SETSLOT", slot, "NODE", self.id_of(target))

    def stop(self) -> None:
        for port in list(self.processes):
            self.kill(port)


def wait_until(ready: Callable[[], object], problem: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Exception):  # the servers are not there yet, or say half of it
            if ready():
                return
        assert time.monotonic() < end, problem
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that are free, with their cluster bus ports 10,000 above."""
    found: list[int] = []
    for port in range(20_000 + os.getpid() % 20_000, 50_000, 7):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for number in (port, port + 10_000):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", number))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("not enough free ports")


def require_redis() -> None:
    if redis is None:
        pytest.skip("needs redis-py: pip install 'laser-ctr[cluster]'")
    if shutil.which(SERVER) is None:
        pytest.skip(f"needs {SERVER}: apt-get install redis-server")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_redis()
    made = Cluster(tmp_path_factory.mktemp("cluster"), free_ports(NODES))
    try:
        for port in made.ports:
            made.start(port)
        made.form()
        yield made
    finally:
        made.stop()
