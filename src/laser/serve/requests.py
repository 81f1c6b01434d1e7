"""A request in raw ids, and the same in codes: every mistake of a caller ends here, in one sentence.

Legend of shape suffixes: B candidates; N events; K values of a multi-valued feature.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from laser.schema import Feature, Kind, Schema, names
from laser.serve.ids import Codes, store_key

FURTHEST = 1 << 62
"""Ticks either way: the difference of two such times fits into 64 bits."""


@dataclass(frozen=True)
class Request:
    """What is to be scored.

    Args:
        user: raw id. One that the model does not know is legal: it has the history that was appended under it.
        candidates: raw item ids [B]. Unknown ones are legal and scored as the unknown item.
        context: per context field one raw value for all candidates, or a list of B; ``None`` as a value is unknown.
            Of a field of several values a list is one value, and a list of lists is one for each candidate.
        now: ticks of the schema's unit; only strictly earlier events are seen. Any time will do: one in the past sees
            the history as it was, one in the future sees all events, older than they are. Default: the clock.
    """

    user: Any
    candidates: Sequence[Any] | np.ndarray
    context: Mapping[str, Any] = field(default_factory=dict)
    now: int | None = None


@dataclass(frozen=True)
class CodedRequest:
    """The same in codes.

    Args:
        key: of the history in the store.
        time: ticks.
        item_B: int64 codes.
        context: per embedded context field int64 codes [B] or [B, K].
    """

    key: int
    time: int
    item_B: np.ndarray
    context: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.item_B)

    def part(self, start: int, stop: int) -> CodedRequest:
        """Some of the candidates."""
        context = {name: codes[start:stop] for name, codes in self.context.items()}
        return CodedRequest(self.key, self.time, self.item_B[start:stop], context)


@dataclass(frozen=True)
class Coder:
    """Turns raw ids and values into codes.

    Args:
        schema: of the data set.
        codes: of each categorical feature.
    """

    schema: Schema
    codes: Mapping[str, Codes]

    def request(self, request: Request) -> CodedRequest:
        """A request in codes.

        Raises:
            ValueError: on an id or value of the wrong type, a missing or unknown context field, or a list of the wrong
                length.
        """
        key, user = self.user(request.user)
        item_B = self._items(request.candidates)
        context = self._context(request.context or {}, len(item_B))
        if self.schema.user.table is not None:
            context[self.schema.user.name] = np.full(len(item_B), user)
        return CodedRequest(key, self._now(request.now), item_B, context)

    def user(self, raw: Any) -> tuple[int, int]:
        """Key in the history store, and code, of a user; see ``store_key`` for one without a code."""
        if raw is None or isinstance(raw, (list, tuple, dict, np.ndarray)):
            raise ValueError(f"user is {type(raw).__name__}; give one raw id of {self.schema.user.name}")
        code = int(self.codes[self.schema.user.name]([raw], "user")[0])
        return (code or store_key(raw)), code

    def events(self, users: Sequence[Any], events: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """N events as the history store keeps them.

        Args:
            users: raw ids [N].
            events: per field of an event N values: timestamps in ticks, and raw ids and values of everything else.

        Returns:
            Keys int64 [N], and per field N values of its type.

        Raises:
            ValueError: when a field is missing or unknown, or a value is of the wrong type.
        """
        wanted = names(self.schema.event)
        if set(events) != set(wanted):
            raise ValueError(
                f"an event of this model has the fields {', '.join(wanted)}; found {', '.join(map(str, events))}"
            )
        coded: dict[str, np.ndarray] = {}
        for feature in self.schema.event:
            values = events[feature.name]
            if len(values) != len(users):
                raise ValueError(f"there are {len(users)} users, but {len(values)} values of {feature.name}")
            if feature.kind is Kind.TIMESTAMP:
                coded[feature.name] = np.array([self._time(value, feature.name) for value in values], dtype=np.int64)
            elif feature.length > 1:
                coded[feature.name] = self._lists(feature, values, f"event {feature.name}").astype(feature.dtype)
            else:
                coded[feature.name] = self.codes[feature.name](values, f"event {feature.name}").astype(feature.dtype)
        return np.array([self.user(user)[0] for user in users], dtype=np.int64), coded

    def _items(self, candidates: Any) -> np.ndarray:
        if isinstance(candidates, (str, bytes, Mapping)) or not hasattr(candidates, "__len__"):
            raise ValueError(f"candidates is a {type(candidates).__name__}; give a list of raw item ids")
        return self.codes[self.schema.item.name](candidates, "candidate")

    def _now(self, now: Any) -> int:
        if now is not None:
            return self._time(now, "now")
        if self.schema.timestamp_unit == "step":
            raise ValueError("now is missing; this model counts time in steps, which no clock tells")
        return int(time.time() / self.schema.seconds_per_tick)

    def _time(self, value: Any, what: str) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            unit = self.schema.timestamp_unit
            raise ValueError(
                f"{what} {value!r:.40} is a {type(value).__name__}; expected a whole number of ticks ({unit})"
            )
        if not -FURTHEST <= value <= FURTHEST:
            raise ValueError(f"{what} is {value!r:.40}; expected a time within 62 bits")
        return int(value)

    def _context(self, context: Any, size: int) -> dict[str, np.ndarray]:
        if not isinstance(context, Mapping):
            raise ValueError(f"context is a {type(context).__name__}; give a mapping from field to value")
        fields = self.schema.of_kind(Kind.CONTEXT)
        wanted = [f for f in fields if f.table is not None]
        if unknown := [name for name in context if name not in names(fields)]:
            raise ValueError(f"context has {unknown[0]!r:.40}; this model knows {', '.join(names(fields)) or 'none'}")
        if missing := [f.name for f in wanted if f.name not in context]:
            raise ValueError(f"context lacks {missing[0]!r}; give its value, or None if it is not known")
        return {f.name: self._of_candidates(f, context[f.name], size) for f in wanted}

    def _of_candidates(self, feature: Feature, value: Any, size: int) -> np.ndarray:
        """Codes [B] or [B, K] of one value for all, or of one for each."""
        what, coder = f"context {feature.name}", self.codes[feature.name]
        several = isinstance(value, (list, tuple, np.ndarray))
        if feature.length > 1:
            each = several and len(value) > 0 and isinstance(value[0], (list, tuple, np.ndarray))
            codes = self._lists(feature, value if each else [value], what)
        else:
            each = several
            codes = coder(value if each else [value], what)
        if not each:
            return np.repeat(codes, size, axis=0)
        if len(codes) != size:
            raise ValueError(f"{what} has {len(codes)} values for {size} candidates; give one for each, or one for all")
        return codes

    def _lists(self, feature: Feature, values: Sequence[Any], what: str) -> np.ndarray:
        """Codes [N, K] of N lists, padded with 0; known values first, as the averages that the model takes want it."""
        found = np.zeros((len(values), feature.length), dtype=np.int64)
        for row, value in enumerate(values):
            listed = [] if value is None else value
            if not isinstance(listed, (list, tuple, np.ndarray)):
                raise ValueError(f"{what} {value!r:.40} is a {type(value).__name__}; expected a list of values")
            if len(listed) > feature.length:
                raise ValueError(f"{what} has {len(listed)} values; this model takes at most {feature.length}")
            found[row, : len(listed)] = self.codes[feature.name](listed, what)
        return found
