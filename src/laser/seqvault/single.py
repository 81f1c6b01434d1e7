"""Appends of one event: packed by one call, written to the log, and linked into memory only when somebody reads.

An array per field and event would cost several times what the log costs.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import numpy as np

from laser.seqvault.layout import Layout
from laser.seqvault.log import APPEND, REST

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
    """Events of single appends that are in the log but not yet linked into memory.

    They are kept as their log records from the sequence number on.
    """

    def __init__(self, layout: Layout) -> None:
        self._names = layout.names
        self._plain = all(field.length == 1 for field in layout.fields)
        self._values = itemgetter(*layout.names)
        record = struct.Struct(REST.format + "Q" + "".join(CODES[field.dtype] for field in layout.fields))
        self._pack, self._payload = record.pack, record.size - REST.size
        widths = [8, *(np.dtype(field.dtype).itemsize for field in layout.fields)]
        self.places = REST.size + np.cumsum([0, *widths[:-1]])
        """Where the user and each field lie in a record."""
        self.size = record.size
        """Bytes of a record."""
        self._waiting: list[bytes] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def pack(self, sequence: int, flags: int, user: int, event: Mapping[str, Any]) -> bytes | None:
        """A record from the sequence number on; ``None`` for what only a full check can accept or refuse by name."""
        if not self._plain or len(event) != len(self._names):
            return None
        try:
            values = self._values(event)
            if len(self._names) == 1:
                values = (values,)
            return self._pack(sequence, 1, APPEND | flags, self._payload, user, *values)
        except (KeyError, struct.error, OverflowError, TypeError):
            return None

    def add(self, record: bytes) -> int:
        """Keep a packed event back; how many are."""
        self._waiting.append(record)
        return len(self._waiting)

    def take(self) -> np.ndarray:
        """The records kept back, in order, one after the other, uint8; there are none afterwards."""
        records = np.frombuffer(b"".join(self._waiting), np.uint8)
        self._waiting.clear()
        return records
