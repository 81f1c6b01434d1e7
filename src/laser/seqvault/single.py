"""Appends of one event: packed by one call, written to the log, and linked into memory only when somebody reads.

An array per field and event would cost several times what the log costs.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from laser.seqvault.layout import Layout

CODES = {
    "int8": "b",
    "uint8": "B",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
}
MOST = 4096
"""Events kept back at most."""


class SingleEvents:
    """Events of single appends that are in the log but not yet linked into memory."""

    def __init__(self, layout: Layout) -> None:
        self._names = layout.names
        self._plain = all(field.length == 1 for field in layout.fields)
        self._pack = struct.Struct("<Q" + "".join(CODES[field.dtype] for field in layout.fields)).pack
        self._row = np.dtype([("", "<u8"), *(("", np.dtype(field.dtype)) for field in layout.fields)])
        self._waiting: list[bytes] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def pack(self, user: int, event: Mapping[str, Any]) -> bytes | None:
        """Payload of the log record; ``None`` for what only a full check can accept or refuse by name."""
        if not self._plain or len(event) != len(self._names):
            return None
        try:
            return self._pack(user, *[event[name] for name in self._names])
        except (KeyError, struct.error, OverflowError, TypeError):
            return None

    def add(self, payload: bytes) -> int:
        """Keep a packed event back; how many are."""
        self._waiting.append(payload)
        return len(self._waiting)

    def take(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Users and events kept back, in order; there are none afterwards."""
        rows = np.frombuffer(b"".join(self._waiting), self._row)
        self._waiting.clear()
        users, *columns = (rows[name] for name in rows.dtype.names or ())
        return users, dict(zip(self._names, columns))
