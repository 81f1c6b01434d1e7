"""The verb ``laser vault follow``."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

from laser.seqvault.following.folder import ArrowFolder
from laser.seqvault.following.follower import Follower
from laser.seqvault.following.sources import EventSource
from laser.seqvault.service.authorization import read_tokens
from laser.seqvault.service.metrics import MetricsEndpoint
from laser.seqvault.service.remote import RemoteVault
from laser.seqvault.vault import SeqVault


def follow(
    path: str,
    source: str,
    state: Path | None = None,
    user: str = "user",
    columns: dict[str, str] | None = None,
    start: Any = None,
    batch_events: int = 4096,
    until_idle: bool = False,
    metrics_port: int | None = None,
    token_file: Path | None = None,
    tls_authority: Path | None = None,
) -> None:
    """Append the events of a stream as they come, each once, whatever crashes; SIGTERM ends it after the batch at hand.

    Args:
        path: folder of the vault; or grpc://host:port or grpc+tls://host:port of a service.
        source: redis://host:port/0?stream=NAME for a Redis stream, or a folder where .parquet or .arrow files appear.
        state: file of this follower's position; by default PATH.follow.json beside the vault's folder.
        user: name of the column of users.
        columns: columns of fields that are not named like them: '{"time": "ts"}'.
        start: position to begin with, for a vault that has followed nothing yet; by default the beginning.
        batch_events: events appended at a time at most.
        until_idle: end when the source has nothing more.
        metrics_port: serve /metrics for Prometheus on this port of this machine.
        token_file: for a service: its token, in the first line.
        tls_authority: for a service: PEM file of the authority that signed its certificate.
    """
    remote = path.startswith("grpc")
    if state is None:
        if remote:
            raise ValueError(
                "following into a service needs --state, a file for the position; keep it as long as the vault"
            )
        state = Path(path.rstrip("/") + ".follow.json")
    with ExitStack() as stack:
        if remote:
            token = read_tokens(token_file)[0] if token_file else None
            vault: Any = stack.enter_context(RemoteVault(path, token, tls=tls_authority))
        else:
            vault = stack.enter_context(SeqVault.open(path, "a", sync="always"))
        follower = Follower(vault, _source(source, user, columns), state, batch_events=batch_events, start=start)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: follower.stop())
        if metrics_port is not None:
            endpoint = MetricsEndpoint("127.0.0.1", metrics_port, follower.metrics)
            stack.callback(endpoint.stop)
        print(json.dumps({"following": source, "into": path}), flush=True)
        stored = follower.run(until_idle=until_idle)
    print(json.dumps({"stored": stored}), flush=True)


def _source(source: str, user: str, columns: dict[str, str] | None) -> EventSource:
    parts = urlsplit(source)
    if parts.scheme not in ("redis", "rediss", "unix"):
        return ArrowFolder(Path(source), user=user, columns=columns)
    from laser.seqvault.following.redis_stream import RedisStream

    query = parse_qs(parts.query)
    stream = query.pop("stream", [""])[0]
    if not stream:
        raise ValueError(f"{source!r} names no stream; expected redis://host:port/0?stream=NAME")
    return RedisStream(urlunsplit(parts._replace(query="")), stream, user=user, columns=columns)
