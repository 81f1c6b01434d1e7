"""A vault behind a service, used like one in a folder.

    with RemoteVault("grpc+tls://histories:8815", token=token, tls=Path("ca.pem")) as vault:
        histories = vault.read([7, 9], before=1_700_000_000, last_n=1000)

Legend of shape suffixes: R requests of a read; N events of an append.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from laser.seqvault.layout import DerivedField, Field, Layout
from laser.seqvault.ragged import Ragged
from laser.seqvault.service import protocol
from laser.seqvault.service.server import BAD_REQUEST, NOT_RUN

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0


class RemoteVault:
    """A client of ``laser vault serve``. Safe to share between threads.

    Args:
        location: ``grpc://host:port``, or ``grpc+tls://host:port``.
        token: sent with each call; ``None`` where everybody may do what is asked.
        tls: PEM file, or its bytes, of the authority that signed the service's certificate; the system's by default.
        client: certificate and key, PEM, where the service wants to see one.
        timeout: seconds that a call may take, repetitions included.
        zstd: ``True`` compresses requests and answers: worth it where the network gives a caller less than about
            100 MB/s (docs/vault_service.md).

    Raises:
        ValueError: when the location is none, or the token cannot be sent.
    """

    def __init__(
        self,
        location: str,
        token: str | None = None,
        *,
        tls: Path | bytes | None = None,
        client: tuple[bytes, bytes] | None = None,
        timeout: float = 10.0,
        zstd: bool = False,
    ) -> None:
        if not location.startswith(("grpc://", "grpc+tls://", "grpc+tcp://")):
            raise ValueError(f"location is {location!r}; expected grpc://host:port or grpc+tls://host:port")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ValueError(
                "the token has characters other than printable ASCII; give it as it is in the service's file"
            )
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}; expected seconds above 0")
        self.location, self._timeout, self._zstd = location, timeout, zstd
        self._headers = [(b"authorization", f"Bearer {token}".encode())] if token is not None else []
        options: dict[str, Any] = {}
        if tls is not None:
            options["tls_root_certs"] = tls.read_bytes() if isinstance(tls, Path) else tls
        if client is not None:
            options["cert_chain"], options["private_key"] = client
        try:
            self._client = flight.connect(location, **options)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"cannot use location {location!r} ({_first_line(error)})") from None
        self._described: dict[str, Any] | None = None
        self._layout: Layout | None = None

    @property
    def layout(self) -> Layout:
        """Fields of an event; asked for once."""
        if self._layout is None:
            found = self._description()
            derived = tuple(DerivedField(*each) for each in found["derived"])
            self._layout = Layout(tuple(Field(*each) for each in found["fields"]), derived)
        return self._layout

    def read(
        self,
        users: Any,
        *,
        before: int | np.ndarray | None = None,
        last_n: int | None = None,
        fields: Iterable[str] | None = None,
        ids: Literal["raw", "codes"] = "raw",
        where: Mapping[str, Any] | None = None,
    ) -> Ragged:
        """See ``SeqVault.read``; repeated when the service is busy or the connection is lost, until the timeout.

        The arrays cannot be written to: they lie in the answer's memory.

        Raises:
            ValueError: on bad arguments, or a token that may not read.
            OSError: when the service cannot be reached, or fails.
            TimeoutError: when it does not answer in time.
        """
        ticket = protocol.encode_read(
            users, before=before, last_n=last_n, fields=fields, ids=ids, where=where, zstd=self._zstd
        )

        def get(options: flight.FlightCallOptions) -> Ragged:
            table = self._client.do_get(flight.Ticket(ticket), options).read_all()
            return protocol.decode_answer(table.combine_chunks().to_batches()[0] if len(table) else _empty(table))

        return self._call(get, again=True)

    def append(self, users: Any, events: Mapping[str, Any]) -> int:
        """See ``SeqVault.append``; what it returns is stored, by the service's policy ``sync``.

        Repeated when the service has refused it unseen. When the connection is lost meanwhile, it is repeated only if
        the vault drops duplicates; otherwise whether it was stored is not known, and the error says so.

        Raises:
            ValueError: on users or events that do not fit, or a token that may not write.
            OSError: when the service cannot be reached, or fails.
            TimeoutError: when it does not answer in time; the events may be stored or not.
        """
        body = protocol.encode_append(self.layout, users, events, zstd=self._zstd)
        return json.loads(self._act("append", body, again=self._description()["duplicates"] == "drop"))["stored"]

    def health(self) -> dict[str, Any]:
        """Whether the service answers, and how many requests it is working on."""
        return json.loads(self._act("health"))

    def stats(self) -> dict[str, int | float]:
        """See ``SeqVault.stats``."""
        return json.loads(self._act("stats"))

    def metrics(self) -> str:
        """Figures of the service as Prometheus text."""
        return self._act("metrics").decode()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _description(self) -> dict[str, Any]:
        if self._described is None:
            self._described = json.loads(self._act("layout"))
        return self._described

    def _act(self, name: str, body: bytes = b"", *, again: bool = True) -> bytes:
        def act(options: flight.FlightCallOptions) -> bytes:
            return next(iter(self._client.do_action(flight.Action(name, body), options))).body.to_pybytes()

        return self._call(act, again=again)

    def _call(self, work: Any, *, again: bool) -> Any:
        """Run ``work``; ``again``: also when it may have been run already."""
        end, pause = time.monotonic() + self._timeout, FIRST_PAUSE
        while True:
            left = max(0.001, end - time.monotonic())
            try:
                return work(flight.FlightCallOptions(timeout=left, headers=self._headers))
            # Nobody here cancels a call: gRPC says so of those that reach a service while it stops.
            except (flight.FlightUnavailableError, flight.FlightCancelledError) as error:
                refused = error.extra_info == NOT_RUN
                if not (again or refused):
                    raise ConnectionError(
                        f"the connection to {self.location} was lost ({_first_line(error)}); whether the events are "
                        f"stored is not known: read before appending them again"
                    ) from None
                if time.monotonic() + pause > end:
                    raise OSError(f"{self.location} is not available ({_first_line(error)})") from None
            except flight.FlightTimedOutError:
                raise TimeoutError(f"{self.location} gave no answer within {self._timeout} s") from None
            except (flight.FlightError, pa.ArrowException) as error:
                raise _translated(error, self.location) from None
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)


def _translated(error: Exception, location: str) -> Exception:
    if isinstance(error, flight.FlightUnauthenticatedError | flight.FlightUnauthorizedError):
        return ValueError(f"{location}: {_first_line(error)}")
    if getattr(error, "extra_info", None) == BAD_REQUEST:
        return ValueError(_first_line(error))
    return OSError(f"{location}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    """What the service said, without gRPC's account of it."""
    line = (str(error).splitlines() or [""])[0]
    for end in (". Detail:", ". gRPC client debug context:"):
        line = line.partition(end)[0]
    return line


def _empty(table: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=table.schema)
