"""What a server takes on: the size of a request, the time to send it, requests at once. Raw ASGI: it reads first."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
DISCARDED = 1 << 24
"""Bytes past the limit that are read and dropped: a client that is cut off while it sends may never see the answer."""


@dataclass(frozen=True)
class Limits:
    """Of an HTTP front.

    Args:
        candidates: of a request.
        body_bytes: of a request.
        seconds: in which a client has to send a request.
        requests: in work or being received at once; more are turned away with status 503.
    """

    candidates: int = 10_000
    body_bytes: int = 1 << 20
    seconds: float = 10.0
    requests: int = 64


class Gate:
    """Lets requests within the limits through to an application, whole; answers the others.

    Args:
        app: behind it.
        limits: of requests.
    """

    def __init__(self, app: App, limits: Limits) -> None:
        self.app, self.limits, self.inside = app, limits, 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if self.inside >= self.limits.requests:
            return await _refuse(send, 503, f"{self.inside} requests are in work; try again")
        self.inside += 1
        try:
            body = await asyncio.wait_for(self._body(scope, receive), self.limits.seconds)
        except TimeoutError:
            return await _refuse(send, 408, f"the request did not arrive within {self.limits.seconds:g} s")
        except OverflowError:
            return await _refuse(send, 413, f"the request has more than {self.limits.body_bytes} bytes")
        else:
            if body is not None:
                await self.app(scope, _replay(body, receive), send)
        finally:
            self.inside -= 1

    async def _body(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes | None:
        """All of the request; ``None`` when the client has gone."""
        most = self.limits.body_bytes
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most + DISCARDED:
            raise OverflowError
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > most + DISCARDED:
                raise OverflowError
            if size <= most:
                parts.append(part)
            more = message.get("more_body", False)
        if size > most:
            raise OverflowError
        return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status != 503:
        headers.append((b"connection", b"close"))  # the rest of the request is not wanted
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
