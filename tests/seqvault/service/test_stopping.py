"""A call that reaches a service while it stops: gRPC says that it was cancelled, whatever became of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import numpy as np
import pyarrow.flight as flight
import pytest

from laser.seqvault.layout import Field, Layout
from laser.seqvault.service import RemoteVault
from laser.seqvault.service.server import describe

LAYOUT = Layout((Field("timestamp", "int64"), Field("item", "uint32")))


class Stopping(flight.FlightServerBase):
    """Cancels as many calls as it is told, then answers."""

    def __init__(self, cancelled: str, times: int) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self.cancelled, self.left, self.calls = cancelled, times, 0

    def do_action(self, context, action):
        self.calls += action.type == self.cancelled
        if action.type == self.cancelled and self.left:
            self.left -= 1
            raise flight.FlightCancelledError("CANCELLED")
        if action.type == "layout":
            return [flight.Result(json.dumps(describe(LAYOUT) | {"mode": "a", "duplicates": "keep"}).encode())]
        return [flight.Result(b"an answer")]


@pytest.fixture
def stopping() -> Iterator:
    servers: list[Stopping] = []

    def start(cancelled: str, times: int) -> tuple[Stopping, RemoteVault]:
        server = Stopping(cancelled, times)
        servers.append(server)
        threading.Thread(target=server.serve, daemon=True).start()
        return server, RemoteVault(f"grpc://127.0.0.1:{server.port}", timeout=1.0)

    yield start
    for server in servers:
        server.shutdown()


def test_what_only_reads_is_repeated(stopping):
    server, remote = stopping("metrics", 2)
    assert remote.metrics() == "an answer"
    assert server.calls == 3


def test_but_not_for_longer_than_the_timeout(stopping):
    _, remote = stopping("metrics", 10_000)
    with pytest.raises(OSError, match="is not available"):
        remote.metrics()


def test_of_an_append_it_is_not_known_whether_it_was_stored(stopping):
    server, remote = stopping("append", 1)
    with pytest.raises(ConnectionError, match="whether the events are stored is not known"):
        remote.append([1], {"timestamp": np.array([5]), "item": np.array([7], np.uint32)})
    assert server.calls == 1
