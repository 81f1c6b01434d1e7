"""From a source into a vault, every event once.

with SeqVault.open("histories", "a", sync="always") as vault:
    Follower(vault, RedisStream("redis://localhost:6379/0", "clicks"), Path("histories.follow.json")).run()
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from laser.seqvault.following.positions import Positions
from laser.seqvault.following.sources import Batch, EventSource
from laser.seqvault.layout import Layout
from laser.seqvault.marks import FIRST_MARK, MARK_USER, mark_event
from laser.seqvault.ragged import Ragged
from laser.seqvault.service.metrics import Metrics

WAIT_SECONDS = 0.5
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
LOOK_SECONDS = 5.0
"""How often the source is asked for its lag."""


class Target(Protocol):
    """What can be followed into: a vault in a folder or behind a service. An append is stored whole or not at all."""

    @property
    def layout(self) -> Layout:
        """Fields of an event."""
        ...

    def append(self, users: Any, events: Mapping[str, Any]) -> int:
        """See ``SeqVault.append``."""
        ...

    def read(self, users: Any, *, last_n: int | None = None, fields: Any = None) -> Ragged:
        """See ``SeqVault.read``."""
        ...


class Follower:
    """Moves events from a source into a vault until ``stop``, or until there are no more.

    Args:
        vault: open for appending, with ``sync="always"``: what it returns from must survive what its owner fears.
        source: of the events.
        state: file of the follower's position; see ``positions``.
        batch_events: appended at a time at most.
        start: position to begin with where neither vault nor file know one.

    Raises:
        ValueError: when vault and file do not belong together.
    """

    def __init__(
        self, vault: Target, source: EventSource, state: Path, *, batch_events: int = 4096, start: Any = None
    ) -> None:
        if batch_events < 1:
            raise ValueError(f"batch_events is {batch_events}; expected at least 1")
        self._vault, self._source, self._batch_events, self._start = vault, source, batch_events, start
        self._positions, self._rejected = Positions(state), state.with_name(state.name + ".rejected.jsonl")
        self._ended = threading.Event()
        self._lag: dict[str, float] = {}
        self._looked = 0.0
        self.metrics = Metrics("laser_follow", lambda: self._lag)
        try:
            self._resume()
        except BaseException:
            self._positions.close()
            raise

    def run(self, *, until_idle: bool = False) -> int:
        """Follow; returns the events stored.

        Args:
            until_idle: return when the source has nothing more at the moment.

        Raises:
            ValueError: when events do not fit the vault, or the source has lost some.
        """
        stored, pause = 0, FIRST_PAUSE
        try:
            while not self._ended.is_set():
                try:
                    self._look()
                    batch = self._source.poll(self._vault.layout, self._position, self._batch_events, WAIT_SECONDS)
                    if batch is None:
                        if until_idle:
                            break
                        continue
                    stored += self._store(batch)
                    pause = FIRST_PAUSE
                except OSError:
                    # Vault or source are away for a moment; the mark will tell what became of the batch.
                    self.metrics.add("failures_total")
                    self._ended.wait(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    with contextlib.suppress(OSError):
                        self._resume()
        finally:
            self._positions.close()
            self._source.close()
        return stored

    def stop(self) -> None:
        """Make ``run`` return after the batch at hand."""
        self._ended.set()

    def _resume(self) -> None:
        """Take up where the vault is."""
        marks = self._vault.read([MARK_USER], last_n=1, fields=[self._vault.layout.names[0]])
        times = next(iter(marks.fields.values()))
        self._number = int(times[0]) - FIRST_MARK if len(times) else 0
        found = self._positions.after(self._number)
        self._position = self._start if found is None else found

    def _store(self, batch: Batch) -> int:
        layout, number, began = self._vault.layout, self._number + 1, time.monotonic()
        if batch.rejected:
            self._reject(batch.rejected)
        self._positions.intend(number, self._position, batch.position)
        mark = mark_event(layout, number)
        users = np.append(batch.users, np.uint64(MARK_USER))
        stored = self._vault.append(
            users, {name: np.concatenate([np.asarray(batch.events[name]), mark[name]]) for name in layout.names}
        )
        self._number, self._position = number, batch.position
        self.metrics.add("events_total", stored - 1)
        self.metrics.add("batches_total")
        self.metrics.took(time.monotonic() - began, step="append")
        if batch.produced is not None:
            self.metrics.took(max(0.0, time.time() - batch.produced), step="produced_to_visible")
        return stored - 1

    def _reject(self, rejected: list[dict[str, Any]]) -> None:
        """Keep what is no event for people to look at; after a crash an entry may stand there twice."""
        with self._rejected.open("a") as file:
            file.writelines(json.dumps(each) + "\n" for each in rejected)
        self.metrics.add("rejected_total", len(rejected))

    def _look(self) -> None:
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._lag, self._looked = self._source.lag(self._position), time.monotonic()
