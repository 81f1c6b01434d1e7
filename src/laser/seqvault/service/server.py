"""The service: Arrow Flight in front of an open vault (docs/vault_service.md says how to speak to it).

Reads are ``DoGet`` with the request in the ticket. Appends are the action ``append``: a unary call, which reaches this
code only when it has arrived in full, so that a client that hangs holds no thread and half a request changes nothing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from laser.seqvault.layout import Layout
from laser.seqvault.service import protocol
from laser.seqvault.service.authorization import KEY, Authorization, Call, Tokens
from laser.seqvault.service.connections import Connections
from laser.seqvault.service.limits import Busy, Gate, Limits
from laser.seqvault.service.metrics import Metrics
from laser.seqvault.vault import SeqVault

BAD_REQUEST, NOT_RUN, FAILED = b"bad request", b"not run", b"failed"
"""What an error tells besides its sentence: the request is wrong; it was refused before anything was done; neither."""
REFRESH_SECONDS = 0.05
"""How old what a service for reading only shows may be."""
ACTIONS = {
    "append": "add events: an Arrow stream of one record batch; answers with the number stored",
    "layout": "fields of an event and the vault's policies, as JSON",
    "health": "whether requests are served, as JSON",
    "stats": "figures about the vault, as JSON",
    "metrics": "figures about the service, as Prometheus text",
}


@dataclass(frozen=True)
class Tls:
    """Certificate and key of the service, and the authority whose clients alone may connect, all PEM."""

    certificate: bytes
    key: bytes
    client_authority: bytes | None = None

    def options(self) -> dict[str, Any]:
        """Arguments of Flight's server."""
        checked = {"verify_client": True, "root_certificates": self.client_authority} if self.client_authority else {}
        return {"tls_certificates": [(self.certificate, self.key)]} | checked


class VaultServer(flight.FlightServerBase):
    """Serves a vault from the moment it is made until ``stop``.

    Args:
        vault: open; stays the caller's to close.
        location: such as ``grpc://127.0.0.1:8815``; port 0 takes a free one, told by ``port``.
        tokens: who may do what.
        limits: see there.
        tls: ``None`` to serve without.

    Raises:
        ValueError: when the port cannot be had, or a certificate is no good.
    """

    def __init__(
        self, vault: SeqVault, location: str, tokens: Tokens, limits: Limits | None = None, tls: Tls | None = None
    ) -> None:
        self.limits, self.vault = limits or Limits(), vault
        self.metrics = Metrics("laser_vault", self._gauges)
        self.stopping = False
        self._gate, self._connections = Gate(self.limits), None
        self._refresh, self._refreshed = threading.Lock(), 0.0
        check = Authorization(tokens, lambda: self.metrics.add("unauthenticated_total"))
        try:
            super().__init__(location, middleware={KEY: check}, **(tls.options() if tls else {}))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"cannot serve on {location} ({reason}); choose another port or certificate") from None
        self._connections = Connections(
            self.port, self.limits, lambda reason: self.metrics.add("connections_closed_total", reason=reason)
        )

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        """A read; see ``protocol.encode_read``."""
        with self._running("read", context) as call:
            users, options, zstd = protocol.decode_read(ticket.ticket, self.limits.request_bytes)
            self._follow()
            self._require_answerable(users, options)
            found = self.vault.read(users, **options)
            size = found.offsets.nbytes + sum(values.nbytes for values in found.fields.values())
            self._gate.open_answer(size)
            call.at_end(lambda: self._gate.close_answer(size))
            self.metrics.add("events_read_total", int(found.offsets[-1]))
            self.metrics.add("answer_bytes_total", size)
            batch = protocol.encode_answer(found)
        written = pa.ipc.IpcWriteOptions(compression="zstd" if zstd else None)
        return flight.RecordBatchStream(pa.Table.from_batches([batch]), options=written)

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> Iterable[flight.Result]:
        """One of ``ACTIONS``."""
        name = action.type
        with self._running(name if name in ACTIONS else "unknown", context) as call:
            if name not in ACTIONS:
                raise ValueError(f"{name!r:.60} is not an action; expected one of {', '.join(ACTIONS)}")
            if name == "append":
                answer = self._append(call, action.body)
            elif name == "metrics":
                answer = self.metrics.text()
            else:
                answer = json.dumps({"layout": self._layout, "health": self._health, "stats": self.vault.stats}[name]())
        return [flight.Result(answer.encode())]

    def list_actions(self, context: flight.ServerCallContext) -> list[tuple[str, str]]:
        """Names and meanings of the actions."""
        return list(ACTIONS.items())

    def stop(self, drain_seconds: float = 30.0) -> None:
        """Take no more calls, finish those that run, and return; after ``drain_seconds`` end them."""
        self.stopping = True
        assert self._connections is not None
        ender = threading.Timer(drain_seconds, self._connections.close_all)
        ender.start()
        try:
            self.shutdown()
        finally:
            ender.cancel()
            self._connections.stop()

    def _append(self, call: Call, body: Any) -> str:
        if call.role != "write":
            raise flight.FlightUnauthorizedError("this token may only read; use one of the file of write tokens")
        users, events = protocol.decode_append(body, self.vault.layout, self.limits.request_bytes)
        stored = self.vault.append(users, events)
        self.metrics.add("events_appended_total", stored)
        return json.dumps({"stored": stored})

    def _require_answerable(self, users: np.ndarray, options: dict[str, Any]) -> None:
        layout, last_n = self.vault.layout, options.get("last_n")
        lengths = self.vault.lengths(users)
        events = int((lengths if last_n is None else np.minimum(lengths, max(0, last_n))).sum())
        per_event = sum(np.dtype(f.dtype).itemsize * f.length for f in layout.choose(options.get("fields")))
        size = events * max(8, per_event) + 8 * len(users)
        if size > self.limits.answer_bytes:
            raise ValueError(
                f"the answer would have up to {size} bytes ({events} events), more than {self.limits.answer_bytes}; "
                f"ask for fewer users, fields or events at a time"
            )

    def _follow(self) -> None:
        """Where another process writes, see its appends."""
        if self.vault.mode == "r":
            with self._refresh:
                if time.monotonic() - self._refreshed > REFRESH_SECONDS:
                    self.vault.refresh()
                    self._refreshed = time.monotonic()

    def _layout(self) -> dict[str, Any]:
        return describe(self.vault.layout) | {"mode": self.vault.mode, "duplicates": self.vault.policies.duplicates}

    def _health(self) -> dict[str, Any]:
        return {"status": "stopping" if self.stopping else "serving", "running": self._gate.running}

    def _gauges(self) -> dict[str, float]:
        gate, opened = self._gate, self._connections.open if self._connections else 0
        found = self.vault.stats()
        shown = ("users", "events", "events_in_memory", "segment_bytes", "log_bytes", "memory_bytes")
        return {
            "requests_running": gate.running,
            "requests_waiting": gate.waiting,
            "open_answer_bytes": gate.open_answer_bytes,
            "connections": opened,
        } | {f"store_{name}": found[name] for name in shown}

    @contextmanager
    def _running(self, method: str, context: flight.ServerCallContext) -> Iterator[Call]:
        """A place at work for a call, its figures, and errors as clients understand them."""
        call, peer, start = context.get_middleware(KEY), context.peer(), time.perf_counter()
        assert self._connections is not None
        connections = self._connections
        connections.begin(peer, id(call))
        call.at_end(lambda: connections.end(peer, id(call)))
        status = "ok"
        try:
            if self.stopping:
                raise Busy("the service is stopping; try another, or later")
            with self._gate.entered():
                if context.is_cancelled():
                    raise Busy("the caller has given up")
                yield call
        except Busy as error:
            status = "busy"
            raise flight.FlightUnavailableError(str(error), NOT_RUN) from None
        except ValueError as error:
            status = "bad_request"
            raise flight.FlightServerError(str(error), BAD_REQUEST) from None
        except flight.FlightUnauthorizedError:
            status = "unauthorized"
            raise
        except Exception as error:
            status = "failed"
            raise flight.FlightServerError(f"{type(error).__name__}: {error}", FAILED) from error
        finally:
            self.metrics.add("requests_total", method=method, status=status)
            self.metrics.took(time.perf_counter() - start, method=method)


def describe(layout: Layout) -> dict[str, Any]:
    """A layout as JSON can hold it."""
    return {
        "fields": [[field.name, field.dtype, field.length] for field in layout.fields],
        "derived": [[field.name, field.dtype, field.length, field.key] for field in layout.derived],
    }
