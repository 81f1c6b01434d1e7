"""Closing connections that take too much: clients that hang, that send without end, that never come back.

gRPC receives a whole request before it asks who sent it, of any size, and waits for ever for a client that does not
read its answer. Neither can be limited through Arrow, so this looks at the process's own sockets: the kernel tells how
many bytes each has received, and shutting one down ends its calls.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from laser.seqvault.service.limits import Limits

INTERVAL_SECONDS = 0.05
BYTES_RECEIVED = 128
"""Where Linux's ``struct tcp_info`` has the bytes received, 8 of them."""
SLACK_BYTES = 1 << 20
"""Of what a connection may receive beyond a request: headers, framing, the next request."""
Peer = tuple[str, int]


@dataclass
class Connection:
    """A client's connection."""

    since: float
    received: int = 0
    calls: dict[int, float] = field(default_factory=dict)


class Connections:
    """Watches the sockets of one listening port.

    Args:
        port: that the service listens on.
        limits: of the service.
        closed: called with the reason for each connection closed.
    """

    def __init__(self, port: int, limits: Limits, closed: Callable[[str], None]) -> None:
        self._port, self._limits, self._closed = port, limits, closed
        self._known: dict[Peer, Connection] = {}
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vault-connections", daemon=True)
        self._thread.start()

    @property
    def open(self) -> int:
        """Connections at present."""
        return len(self._known)

    def begin(self, peer: str, call: int) -> None:
        """A call of a known caller has arrived in full."""
        with self._guard:
            connection = self._known.setdefault(parse_peer(peer), Connection(time.monotonic()))
            connection.calls[call] = time.monotonic()
            connection.received = -1  # counts anew from the next look

    def end(self, peer: str, call: int) -> None:
        """The call is over."""
        with self._guard:
            if (connection := self._known.get(parse_peer(peer))) is not None:
                connection.calls.pop(call, None)
                connection.since = time.monotonic()

    def close_all(self) -> None:
        """End every call at once."""
        for _, opened in self._sockets():
            _shut(opened)

    def stop(self) -> None:
        """End the watch."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        present, now = set(), time.monotonic()
        for peer, opened in self._sockets():
            present.add(peer)
            received = _bytes_received(opened)
            with self._guard:
                connection = self._known.setdefault(peer, Connection(now))
                if connection.received < 0:
                    connection.received = received
                reason = self._excess(connection, received, now, len(present))
            if reason:
                _shut(opened)
                self._closed(reason)
        with self._guard:
            for peer in [peer for peer in self._known if peer not in present]:
                if not self._known[peer].calls:
                    del self._known[peer]

    def _excess(self, connection: Connection, received: int, now: float, position: int) -> str | None:
        limits = self._limits
        if received - connection.received > limits.request_bytes + SLACK_BYTES:
            return "request_bytes"
        if connection.calls and now - min(connection.calls.values()) > limits.call_seconds:
            return "call_seconds"
        if not connection.calls and now - connection.since > limits.idle_seconds:
            return "idle_seconds"
        return "connections" if position > limits.connections and not connection.calls else None

    def _sockets(self) -> Iterator[tuple[Peer, socket.socket]]:
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    continue
                with socket.socket(fileno=os.dup(int(name))) as opened:
                    if opened.family in (socket.AF_INET, socket.AF_INET6) and opened.getsockname()[1] == self._port:
                        host, port = opened.getpeername()[:2]
                        yield (host.removeprefix("::ffff:"), port), opened


def parse_peer(text: str) -> Peer:
    """Address of a caller as gRPC writes it, such as ``ipv4:127.0.0.1:52526``."""
    found = re.fullmatch(r"ipv[46]:\[?([^\]]*)\]?:(\d+)", unquote(text))
    return (found[1].removeprefix("::ffff:"), int(found[2])) if found else (text, 0)


def _bytes_received(opened: socket.socket) -> int:
    info = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RECEIVED + 8)
    return struct.unpack_from("<Q", info, BYTES_RECEIVED)[0] if len(info) >= BYTES_RECEIVED + 8 else 0


def _shut(opened: socket.socket) -> None:
    with contextlib.suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)
