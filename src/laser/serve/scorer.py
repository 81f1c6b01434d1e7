"""Scores candidates for a user: raw ids in, probabilities out, fresh to the last append.

    scorer = Scorer("bundle", SeqVault.open("vault"))
    scorer.score(user=7, candidates=[40, 41], context={"device": "phone"}, now=1_700_000_000)   # [0.12, 0.08]

Legend of shape suffixes: B candidates; R requests; N events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from laser.schema import Kind, names
from laser.seqvault.layout import Layout
from laser.seqvault.ragged import Ragged
from laser.serve.bundle import Bundle
from laser.serve.loading import load_engine
from laser.serve.network import TRUSTED
from laser.serve.requests import CodedRequest, Coder, Request


class Histories(Protocol):
    """A history store: ``SeqVault``, or whatever reads like one.

    If it has ``refresh``, that is called before a read, so that appends of other processes are seen. If it has
    ``layout``, its fields are compared with those of the model.
    """

    def read(self, users: Any, *, before: Any = None, last_n: int | None = None) -> Ragged:
        """Histories of users, events strictly before a time each, the newest."""
        ...


class Scorer:
    """A model and a history store. Safe to share between threads, as far as the store is.

    Args:
        bundle: that ``laser export`` wrote, or its folder.
        vault: histories by the codes of users; see ``append``.
        device: of the dense part, "cpu" or "cuda"; tables stay in the host's memory map.
        cache_bytes: of what is kept of users between requests; see ``laser.serve.event_rows``. 0 keeps nothing.
        checksums: whether to compare the checksums of the bundle's files.
        trusted: beginnings of the names of classes that the bundle may name.
        compiled: whether to run the bundle's native code (``laser export --compile``): loading it is trusting it.

    Raises:
        ValueError: when the bundle is damaged, answers otherwise than when it was written, or the store keeps other
            events than the model was trained on.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        vault: Histories,
        *,
        device: str = "cpu",
        cache_bytes: int = 256 << 20,
        checksums: bool = True,
        trusted: Iterable[str] = TRUSTED,
        compiled: bool = False,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, checksums=checksums)
        self.engine = load_engine(
            self.bundle, device=device, cache_bytes=cache_bytes, trusted=trusted, compiled=compiled
        )
        self.schema, self.vault = self.bundle.schema, vault
        self.coder = Coder(self.schema, self.bundle.codes())
        self.max_history = int(self.bundle.facts["max_history"])
        _check_fields(vault, self.bundle)

    def score(
        self,
        user: Any,
        candidates: Sequence[Any] | np.ndarray,
        context: Mapping[str, Any] | None = None,
        now: int | None = None,
    ) -> np.ndarray:
        """Probabilities of a click of one user on each candidate, float32 [B]; see ``Request`` for the arguments.

        Raises:
            ValueError: on an id or value of the wrong type, or a context that does not fit.
        """
        return self.score_many([Request(user, candidates, context or {}, now)])[0]

    def score_many(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """``score`` for R requests: one read of the store, one array [B] for each request.

        Raises:
            ValueError: as ``score``, for the first request that is wrong; none is scored then.
        """
        coded = [self.coder.request(request) for request in requests]
        return self.engine.score(coded, self.read(coded)) if coded else []

    def append(self, users: Sequence[Any], events: Mapping[str, Any]) -> int:
        """Append N events in raw ids and values to the store: the next request of their users sees them.

        A user without a code is stored under ``laser.serve.ids.store_key``, so that its history counts from the first
        event on. An item or value without a code is stored as unknown.

        Args:
            users: raw ids [N].
            events: per field of the schema's events N values, timestamps in ticks.

        Returns:
            Events stored.

        Raises:
            ValueError: when a field is missing or unknown, a value is of the wrong type, or the store is read-only.
        """
        if not hasattr(self.vault, "append"):
            raise ValueError("the history store has no append; open one that can be written to")
        return self.vault.append(*self.coder.events(users, events))

    def read(self, requests: Sequence[CodedRequest]) -> Ragged:
        """Histories of R requests, each cut at its time; ids that the model does not know are 0."""
        if hasattr(self.vault, "refresh"):
            self.vault.refresh()
        key, time = (np.array([getattr(r, name) for r in requests], np.int64) for name in ("key", "time"))
        events = self.vault.read(key, before=time, last_n=self.max_history)
        fields = {feature.name: events[feature.name] for feature in self.schema.event}
        for feature in self.schema.of_kind(Kind.ITEM, Kind.EVENT_SIDE):
            # A store that has grown with the log knows ids that are newer than the model.
            ids = fields[feature.name]
            if feature.cardinality is not None and ids.size and int(ids.max()) >= feature.cardinality:
                fields[feature.name] = np.where(ids < feature.cardinality, ids, 0)
        return Ragged(fields, events.offsets)


def _check_fields(vault: Any, bundle: Bundle) -> None:
    found = getattr(vault, "layout", None)
    if found is None:
        return
    wanted = [(field.name, field.length) for field in Layout.of(bundle.schema).fields]
    if missing := [name for name, length in wanted if (name, length) not in [(f.name, f.length) for f in found.fields]]:
        raise ValueError(
            f"the history store keeps {', '.join(field.name for field in found.fields)}; the model of bundle "
            f"{bundle.path} wants {', '.join(names(bundle.schema.event))}, and {missing[0]!r} is not there; give the "
            "store of the data set that it was trained on, or one made with the bundle's schema.json"
        )
