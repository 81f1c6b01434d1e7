"""What one caller may take from the service: sizes, places at work, time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields


class Busy(Exception):
    """The service has no room; the request was not run."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a service.

    Args:
        request_bytes: of one request, unpacked. A connection that sends more is closed, before or after it has said
            who it is.
        answer_bytes: of one answer, before compression, estimated from the lengths of the histories asked for.
        open_answer_bytes: of all answers that clients have not taken yet.
        running: requests at work at a time.
        waiting: requests that wait for their turn; further ones are refused.
        wait_seconds: how long one waits at most.
        call_seconds: how long one call may last, the transfer included; then its connection is closed.
        idle_seconds: a connection on which no call has ended for so long is closed.
        connections: at a time.

    Raises:
        ValueError: when one is not above 0.
    """

    request_bytes: int = 64 << 20
    answer_bytes: int = 256 << 20
    open_answer_bytes: int = 1 << 30
    running: int = 8
    waiting: int = 256
    wait_seconds: float = 5.0
    call_seconds: float = 60.0
    idle_seconds: float = 600.0
    connections: int = 1000

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"limit {field.name} is {getattr(self, field.name)}; expected more than 0")


class Gate:
    """Lets ``limits.running`` requests in at a time, and keeps count of answers under way."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._changed = threading.Condition()
        self.running = self.waiting = self.open_answer_bytes = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A place at work.

        Raises:
            Busy: when there is none within ``limits.wait_seconds``, or too many wait already.
        """
        limits = self._limits
        with self._changed:
            if self.running >= limits.running:
                if self.waiting >= limits.waiting:
                    raise Busy(f"{self.waiting} requests wait already; try again later")
                self._wait(time.monotonic() + limits.wait_seconds)
            self.running += 1
        try:
            yield
        finally:
            with self._changed:
                self.running -= 1
                self._changed.notify()

    def _wait(self, end: float) -> None:
        self.waiting += 1
        try:
            while self.running >= self._limits.running:
                if not self._changed.wait(max(0.0, end - time.monotonic())):
                    raise Busy(f"no turn within {self._limits.wait_seconds} s; try again later")
        finally:
            self.waiting -= 1

    def open_answer(self, size: int) -> None:
        """Count an answer of ``size`` bytes until ``close_answer``.

        Raises:
            Busy: when clients have not taken too many bytes yet.
        """
        with self._changed:
            # A single answer always fits: answers have a limit of their own.
            if self.open_answer_bytes and self.open_answer_bytes + size > self._limits.open_answer_bytes:
                raise Busy(f"answers of {self.open_answer_bytes} bytes have not been taken yet; try again later")
            self.open_answer_bytes += size

    def close_answer(self, size: int) -> None:
        """The answer has been sent, or given up."""
        with self._changed:
            self.open_answer_bytes -= size
