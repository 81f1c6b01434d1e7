"""Who may read and who may write: tokens, compared in constant time, and what each call carries through."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pyarrow.flight as flight

Role = Literal["read", "write"]
MIN_TOKEN = 16
"""Characters of a token at least; shorter ones can be guessed."""
KEY = "call"


class Tokens:
    """Tokens by what they allow; writers may read as well. Only digests are kept.

    Args:
        read: tokens that may read.
        write: tokens that may read and write.
        anonymous: what callers without a token may do; ``None`` for nothing.

    Raises:
        ValueError: when nobody could do anything, or a token is too short.
    """

    def __init__(self, read: Sequence[str], write: Sequence[str], anonymous: Role | None = None) -> None:
        if not (read or write or anonymous):
            raise ValueError(
                "the service has no tokens, so nobody could use it; give a file of tokens (16 characters or more, one "
                "a line), or say with anonymous=read or anonymous=write what everybody may do"
            )
        if any(len(token) < MIN_TOKEN for token in (*read, *write)):
            raise ValueError(f"a token has fewer than {MIN_TOKEN} characters; make one with: openssl rand -hex 32")
        by_role: dict[Role, Sequence[str]] = {"write": write, "read": read}
        self._known = [(_digest(token), role) for role, tokens in by_role.items() for token in tokens]
        self._anonymous = anonymous

    def role(self, token: str | None) -> Role | None:
        """What the bearer may do; looks at every known token whether or not one has matched."""
        if token is None:
            return self._anonymous
        given, found = _digest(token), None
        for digest, role in self._known:
            if hmac.compare_digest(digest, given) and found is None:
                found = role
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def read_tokens(file: Path | None) -> list[str]:
    """Tokens of a file, one a line.

    Raises:
        ValueError: when it cannot be read or holds none.
    """
    if file is None:
        return []
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the file of tokens {file} cannot be read ({error}); give a text file") from None
    found = [line for line in lines if line]
    if not found:
        raise ValueError(f"the file of tokens {file} is empty; write one token a line, made with: openssl rand -hex 32")
    return found


class Call(flight.ServerMiddleware):
    """One call from its start to its end: the caller's role, and what to do when it is over."""

    def __init__(self, role: Role) -> None:
        self.role, self.started = role, time.monotonic()
        self._at_end: list[Callable[[], None]] = []

    def at_end(self, action: Callable[[], None]) -> None:
        """Run ``action`` when the answer has been sent, or the caller is gone."""
        self._at_end.append(action)

    def call_completed(self, exception: BaseException | None) -> None:
        """Called by Arrow."""
        for action in self._at_end:
            action()
        self._at_end = []


class Authorization(flight.ServerMiddlewareFactory):
    """Refuses calls without a known token before anything is done for them."""

    def __init__(self, tokens: Tokens, refused: Callable[[], None]) -> None:
        super().__init__()
        self._tokens, self._refused = tokens, refused

    def start_call(self, info: flight.CallInfo, headers: Mapping[str, Sequence[str]]) -> Call:
        """Called by Arrow.

        Raises:
            FlightUnauthenticatedError: when the caller may do nothing.
        """
        role = self._tokens.role(_bearer(headers))
        if role is None:
            self._refused()
            raise flight.FlightUnauthenticatedError("no valid token; send the header authorization: Bearer TOKEN")
        return Call(role)


def _bearer(headers: Mapping[str, Sequence[str]]) -> str | None:
    """The token of a call; what is there but is no token is one that nobody has."""
    given = headers.get("authorization")
    if not given:
        return None
    scheme, _, token = str(given[0]).partition(" ")
    return token if scheme.lower() == "bearer" else ""
