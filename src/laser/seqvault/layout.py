"""What one event of a vault consists of, and the checks on events handed in by a caller.

A field is one value per event, or ``length`` values; on disk each of these is a column of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from laser.schema import Feature, Schema
from laser.seqvault.bits import MAX_CHUNK_WORDS, worst_chunk_words

MAX_CHUNK_EVENTS = 1000


@dataclass(frozen=True)
class Field:
    """One field of an event: its name, numpy dtype name and values per event."""

    name: str
    dtype: str
    length: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one event's value."""
        return () if self.length == 1 else (self.length,)

    @property
    def unsigned(self) -> np.dtype:
        """Unsigned integer of the same size: what the packing kernels see."""
        return np.dtype(f"u{np.dtype(self.dtype).itemsize}")


@dataclass(frozen=True)
class DerivedField(Field):
    """A field that follows from the id in another one, ``key``; it is not stored with the event."""

    key: str = ""


@dataclass(frozen=True)
class Layout:
    """Fields of an event; the first is the timestamp, int64. ``derived`` ones are read, but not stored with it.

    Raises:
        ValueError: when there is no timestamp or its type is not int64, or an event is too wide to pack.
    """

    fields: tuple[Field, ...]
    derived: tuple[DerivedField, ...] = ()

    def __post_init__(self) -> None:
        if not self.fields or self.fields[0].dtype != "int64" or self.fields[0].length != 1:
            raise ValueError(
                "the first field of an event must be its timestamp, one int64; set that dtype in the schema"
            )
        if self.chunk_events < 16:
            raise ValueError(
                f"an event has {self.num_columns} values, more than a chunk holds; shorten its list fields"
            )

    @classmethod
    def of(cls, schema: Schema | Iterable[Feature | Field], derived: Mapping[str, str] | None = None) -> Layout:
        """Layout of a schema's events, or of the given features (timestamp first).

        Args:
            schema: whose event fields; or these.
            derived: fields that are not stored, each with the id field that they follow from.

        Raises:
            ValueError: as the class, and when a derived field or its id field will not do.
        """
        fields = tuple(
            Field(f.name, f.dtype, f.length) for f in (schema.event if isinstance(schema, Schema) else schema)
        )
        wanted = dict(derived or {})
        stored = cls(tuple(field for field in fields if field.name not in wanted))
        known = {field.name: field for field in fields}
        for name, key in wanted.items():
            of = next((field for field in stored.fields[1:] if field.name == key), None)
            if name not in known or of is None or of.length != 1 or np.dtype(of.dtype).kind not in "iu":
                raise ValueError(
                    f"derived field {name!r} of {key!r}: expected two event fields, the second stored, one whole number"
                )
        added = (DerivedField(name, known[name].dtype, known[name].length, key) for name, key in wanted.items())
        return replace(stored, derived=tuple(added))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Field names in order."""
        return tuple(field.name for field in self.fields)

    @cached_property
    def num_columns(self) -> int:
        """Values per event."""
        return sum(field.length for field in self.fields)

    @cached_property
    def first_column(self) -> dict[str, int]:
        """Number of each field's first column; of a derived field that of its ids."""
        starts = np.cumsum([0, *(field.length for field in self.fields)])
        stored = {field.name: int(start) for field, start in zip(self.fields, starts)}
        return stored | {field.name: stored[field.key] for field in self.derived}

    @cached_property
    def signed(self) -> np.ndarray:
        """Per column whether its values order as signed integers."""
        kinds = [np.dtype(field.dtype).kind == "i" for field in self.fields for _ in range(field.length)]
        return np.array(kinds, dtype=np.bool_)

    @cached_property
    def event_bytes(self) -> int:
        """Bytes of one event outside a segment."""
        return sum(np.dtype(field.dtype).itemsize * field.length for field in self.fields)

    @cached_property
    def chunk_events(self) -> int:
        """Most events that one chunk may hold, so that even incompressible ones fit its length field."""
        fit = (MAX_CHUNK_WORDS - worst_chunk_words(0, self.num_columns)) // max(1, self.num_columns)
        return min(MAX_CHUNK_EVENTS, fit)

    def choose(self, names: Iterable[str] | None) -> tuple[Field, ...]:
        """Fields by name, derived ones among them; all for ``None``.

        Raises:
            ValueError: on a name that is not a field.
        """
        known = {field.name: field for field in (*self.fields, *self.derived)}
        if names is None:
            return tuple(known.values())
        wanted = [names] if isinstance(names, str) else list(names)
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(f"no event field {', '.join(map(repr, unknown))} in this vault; it has {', '.join(known)}")
        return tuple(known[name] for name in wanted)

    def empty(self, size: int) -> dict[str, np.ndarray]:
        """Uninitialised events."""
        return {field.name: np.empty((size, *field.shape), field.dtype) for field in self.fields}

    def coerce(self, events: Mapping[str, Any], size: int) -> dict[str, np.ndarray]:
        """Events as contiguous arrays of the vault's own types.

        Raises:
            ValueError: on a missing or unknown field, a wrong number of rows, or values the field cannot hold.
        """
        if set(events) != set(self.names):
            missing, unknown = sorted(set(self.names) - set(events)), sorted(set(events) - set(self.names))
            raise ValueError(
                f"events must have the fields {', '.join(self.names)}; missing: {missing}, not known: {unknown}"
            )
        return {field.name: coerce_values(field, events[field.name], size) for field in self.fields}

    def columns(self, events: Mapping[str, np.ndarray], order: np.ndarray) -> np.ndarray:
        """Events in the given order as uint64 [columns, events], signed values sign-extended, floats as their bits."""
        columns = np.empty((self.num_columns, len(order)), np.uint64)
        for field in self.fields:
            values = events[field.name][order].reshape(len(order), field.length)
            if values.dtype.kind == "f":
                values = values.view(field.unsigned)
            start = self.first_column[field.name]
            with np.errstate(over="ignore"):
                columns[start : start + field.length] = values.T.astype(np.uint64)
        return columns


def coerce_values(field: Field, values: Any, size: int) -> np.ndarray:
    """Values of one field as a contiguous array of its own type.

    Raises:
        ValueError: on a wrong number of rows, or values the field cannot hold.
    """
    found, dtype = np.asarray(values), np.dtype(field.dtype)
    if found.shape != (size, *field.shape):
        raise ValueError(
            f"field {field.name!r} has shape {found.shape}; expected {(size, *field.shape)}, one row per event"
        )
    if found.dtype == dtype:
        return np.ascontiguousarray(found)
    if size and not (found.dtype.kind in "iub" or (found.dtype.kind == "f" and dtype.kind == "f")):
        raise ValueError(f"field {field.name!r} holds {found.dtype} values; expected {field.dtype}: convert them first")
    if size and dtype.kind in "iu" and found.dtype.kind in "iu":
        limits, low, high = np.iinfo(dtype), int(found.min()), int(found.max())
        if low < limits.min or high > limits.max:
            raise ValueError(
                f"field {field.name!r} holds {low} ... {high}, outside {field.dtype}; widen its dtype in the schema"
            )
    return np.ascontiguousarray(found.astype(dtype))


def user_ids(users: Any) -> np.ndarray:
    """User ids as a contiguous uint64 vector.

    Raises:
        ValueError: when they are not whole numbers from 0 to 2**64 - 1 in one dimension.
    """
    found = np.atleast_1d(np.asarray(users))
    if isinstance(users, Sequence) and users and all(isinstance(user, int | np.integer) for user in users):
        if min(users) < 0 or max(users) >= 2**64:
            raise ValueError(f"user ids go from {min(users)} to {max(users)}; expected 0 ... 2**64 - 1")
        found = np.array(users, np.uint64)  # numpy makes floats of a list of small and very large integers
    if not found.size:
        found = found.astype(np.uint64)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise ValueError(f"users are {found.dtype} of shape {found.shape}; expected a vector of integer ids")
    if found.dtype.kind == "i" and found.size and (low := int(found.min())) < 0:
        raise ValueError(f"user ids reach down to {low}; expected 0 ... 2**64 - 1: encode users as dense codes first")
    return np.ascontiguousarray(found.astype(np.uint64))
