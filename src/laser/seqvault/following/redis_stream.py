"""Events of a Redis stream: one entry per event, a field ``user`` and one for each field of the vault, as decimal text.

A field of several values is a JSON list. Entries that cannot be read so are rejected, not waited for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from laser.seqvault.following.sources import Batch
from laser.seqvault.layout import Field, Layout

try:
    import redis
except ImportError:
    raise ValueError(
        "following a Redis stream needs redis-py; install it with: pip install 'laser-ctr[cluster]'"
    ) from None

Entry = tuple[bytes, Mapping[bytes, bytes]]
START = "0-0"


class RedisStream:
    """A source over ``XREAD``; a position is the id of the last entry read, and how many were read up to it.

    A stream that was trimmed beyond what has been read is noticed by that number, if it is read from its beginning.

    Args:
        url: such as ``redis://host:6379/0``.
        stream: its key.
        user: name of the field of users.
        columns: names of fields that are not called like the vault's, field to name.

    Raises:
        ValueError: when the address is none.
    """

    def __init__(self, url: str, stream: str, *, user: str = "user", columns: Mapping[str, str] | None = None) -> None:
        self._stream, self._user, self._columns = stream, user, dict(columns or {})
        try:
            self._client = redis.Redis.from_url(url, socket_timeout=30, socket_connect_timeout=5)
        except ValueError as error:
            raise ValueError(f"{url!r} is no address of Redis ({error}); expected redis://host:port/database") from None

    def poll(self, layout: Layout, position: Any, most: int, wait_seconds: float) -> Batch | None:
        """See ``EventSource``."""
        after, read = _place(position)
        wait = max(1, int(wait_seconds * 1000))
        try:
            found: Any = self._client.xread({self._stream: after}, count=most, block=wait)
        except redis.exceptions.ResponseError as error:
            raise ValueError(f"{self._stream!r} cannot be read as a stream ({error}); check its name") from None
        except redis.exceptions.RedisError as error:
            raise OSError(f"Redis does not answer ({error})") from None
        entries = _entries(found)
        if not entries:
            return None
        users, events, rejected = self._decode(layout, entries)
        last = entries[-1][0].decode()
        place = {"id": last, "read": None if read is None else read + len(entries)}
        return Batch(users, events, place, int(last.partition("-")[0]) / 1000, rejected)

    def lag(self, position: Any) -> dict[str, float]:
        """Entries not read yet, where they are counted, and seconds of the stream's own time up to its last entry.

        Raises:
            ValueError: when entries were removed before they were read.
        """
        try:
            told: Any = self._client.xinfo_stream(self._stream)
        except redis.exceptions.RedisError:
            return {}
        after, read = _place(position)
        added, last = told.get("entries-added"), _milliseconds(told["last-generated-id"])
        figures = {"lag_seconds": (last - _milliseconds(after)) / 1000 if position else 0.0}
        if added is None or read is None:  # before Redis 7, or begun somewhere within
            return figures
        if (removed := added - told["length"]) > read:
            raise ValueError(
                f"the stream {self._stream!r} has lost {removed - read} entries that were never read: it was trimmed; "
                f"load these events from elsewhere, and go on with a new state and start"
            )
        return figures | {"lag_entries": added - read}

    def close(self) -> None:
        """See ``EventSource``."""
        self._client.close()

    def _decode(
        self, layout: Layout, entries: Sequence[Entry]
    ) -> tuple[np.ndarray, dict[str, np.ndarray], list[dict[str, Any]]]:
        try:
            return *self._values(layout, entries), []
        except (ValueError, KeyError, OverflowError, TypeError):
            pass  # one at a time, to find out which
        kept, rejected = [], []
        for entry in entries:
            try:
                self._values(layout, [entry])
                kept.append(entry)
            except KeyError as error:
                rejected.append(_rejected(entry, f"it has no field {error}"))
            except (ValueError, OverflowError, TypeError) as error:
                rejected.append(_rejected(entry, str(error)))
        return *self._values(layout, kept), rejected

    def _values(self, layout: Layout, entries: Sequence[Entry]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        users = _numbers(Field(self._user, "uint64"), [entry[self._user.encode()] for _, entry in entries])
        events = {}
        for field in layout.fields:
            name = self._columns.get(field.name, field.name).encode()
            events[field.name] = _numbers(field, [entry[name] for _, entry in entries])
        return users, events


def _numbers(field: Field, texts: list[bytes]) -> np.ndarray:
    """Values of one field.

    Raises:
        ValueError: when a text is no number that fits it.
    """
    dtype = np.dtype(field.dtype)
    whole = dtype.kind in "iu"
    if field.length > 1:
        found = np.array([json.loads(text) for text in texts], object if whole else dtype)
    else:
        found = np.array([int(text) for text in texts], object) if whole else np.array([float(t) for t in texts], dtype)
    if found.shape != (len(texts), *field.shape) and texts:
        raise ValueError(f"field {field.name!r} has not {field.length} values")
    if whole and found.size:
        limits, low, high = np.iinfo(dtype), found.min(), found.max()
        if not all(isinstance(value, int) for value in (low, high)) or low < limits.min or high > limits.max:
            raise ValueError(f"field {field.name!r} holds {low} ... {high}, which does not fit {dtype}")
    return found.astype(dtype).reshape(len(texts), *field.shape)


def _rejected(entry: Entry, reason: str) -> dict[str, Any]:
    shown = {name.decode("utf8", "replace"): text.decode("utf8", "replace") for name, text in entry[1].items()}
    return {"id": entry[0].decode(), "reason": reason, "entry": shown}


def _entries(found: Any) -> list[Entry]:
    """Entries of the one stream asked for, by either version of the protocol."""
    if not found:
        return []
    streams = list(found.values()) if isinstance(found, dict) else [entries for _, entries in found]
    entries = streams[0]
    return list(entries[0]) if entries and isinstance(entries[0], list) else list(entries)


def _place(position: Any) -> tuple[str, int | None]:
    """Id of a position, and how many entries were read up to it, if that is known."""
    if position is None:
        return START, 0
    return (position["id"], position["read"]) if isinstance(position, dict) else (str(position), None)


def _milliseconds(entry: Any) -> int:
    return int((entry.decode() if isinstance(entry, bytes) else str(entry)).partition("-")[0])
