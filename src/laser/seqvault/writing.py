"""The writing side of an open vault: appends, deletions, and the steps that move events into segments."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from laser.seqvault.catalog import Catalog
from laser.seqvault.committing import Committer
from laser.seqvault.layout import Layout, user_ids
from laser.seqvault.lengths import history_lengths
from laser.seqvault.overlap import usable_threads
from laser.seqvault.planning import FOREVER
from laser.seqvault.ragged import Ragged
from laser.seqvault.recent import Recent
from laser.seqvault.staging import Block
from laser.seqvault.storing import pack_events, repack, sample
from laser.seqvault.syncing import Syncer
from laser.seqvault.tail import coded_in_turns

if TYPE_CHECKING:
    from laser.seqvault.maintenance import Maintenance
    from laser.seqvault.shards import Shards

CLOSE_EVENTS = 4096
"""Closing moves recent events to a segment when there are this many; fewer are quicker to replay."""
BULK_EVENTS = 1 << 17
"""Appends of at least this many events go to a segment directly, and are durable when the call returns."""
SLOWED, LONGEST_PAUSE = 1.25, 0.02
"""Appends pause when recent events take so many times their memory, and at twice it for so many seconds each."""


class Writer(Committer):
    """Changes a vault; ``SeqVault`` documents what its methods promise.

    Args:
        catalog: segments and index.
        recent: what no segment has yet.
        syncer: makes the log durable.
        lock: the vault's.
        read: the vault's ``read``.
        tail_bytes: memory for recent events.
    """

    def __init__(
        self,
        catalog: Catalog,
        recent: Recent,
        syncer: Syncer,
        lock: threading.RLock,
        read: Callable[..., Ragged],
        tail_bytes: int,
    ) -> None:
        super().__init__(catalog, recent, lock)
        self._read, self.tail_bytes = read, tail_bytes
        self.maintenance: Maintenance | None = None
        self._selective = catalog.selective
        recent.start_writing(syncer)
        if catalog.index_lost:
            self.save_index()

    @property
    def _layout(self) -> Layout:
        return self.catalog.manifest.layout

    def append(self, users: Any, events: Mapping[str, Any]) -> int:
        """See ``SeqVault.append``."""
        ids = user_ids(users)
        values = self._layout.coerce(events, len(ids))
        if len(ids) >= BULK_EVENTS:
            return self.append_parts([(ids, values)])
        with self._appending:
            ids, values = self._admitted(ids, values)
            if len(ids):
                self.recent.append(ids, values, self.lock)
        self._keep_budget()
        return len(ids)

    def _admitted(self, ids: np.ndarray, values: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        admitted = self.catalog.manifest.admission.admit(self._layout, ids, values, self._read)
        if admitted.all():
            return ids, values
        return ids[admitted], {name: column[admitted] for name, column in values.items()}

    def append_parts(self, parts: Iterable[tuple[np.ndarray, dict[str, np.ndarray]]]) -> int:
        """Append parts without a user in common, packed one at a time, in one commit; returns the events stored."""
        # No other event may come between: one that is newer than these must not be stored before them.
        with self.committing, self._appending:
            self.checkpoint()
            coming, catalog, stored = iter(parts), self.catalog, 0
            first = next(coming, None)
            if first is None:
                return 0
            ids = catalog.files.ids if catalog.manifest.segments else catalog.choose_ids(*first)

            def packed() -> Iterator[Block]:
                nonlocal stored
                for part in chain([first], coming):
                    users, events = self._admitted(*part)
                    if len(users):
                        stored += len(users)
                        coded = coded_in_turns(events, len(users), ids, self.lock)
                        threads = usable_threads()
                        yield from pack_events(self._layout, catalog.index, catalog.files, users, coded, threads)

            try:
                self.commit(catalog.stage(packed()), ids)
            except BaseException:
                with self.lock:
                    ids.roll_back()  # events of the next append must get the codes that readers of the log give them
                raise
            return stored

    def adopt(self, shards: Shards) -> None:
        """See ``SeqVault.adopt``."""
        with self.committing, self._appending:
            self.checkpoint()
            catalog, present = self.catalog, history_lengths(self.catalog.index, None, shards.users)
            if present.any():
                first = int(np.argmax(present > 0))
                raise ValueError(
                    f"user {shards.users[first]} of a shard has {present[first]} events in {catalog.folder} already; "
                    f"write shards of new users only, or load these events instead"
                )
            shards.require_coded(catalog.files.ids)
            self.commit(catalog.stage(shards.blocks()), catalog.files.ids)

    def append_one(self, user: int, event: Mapping[str, Any]) -> int:
        """See ``SeqVault.append_one``."""
        due = None
        if not self._selective:
            with self._appending:
                due = self.recent.append_one(user, event, self.lock)
        if due is None:
            return self.append([user], {name: [value] for name, value in event.items()})
        if due:
            self._keep_budget()
        return 1

    def _keep_budget(self) -> None:
        """Checkpoint when memory is full; if the disk is too, events stay in log and memory, which suffice."""
        if not self.over_budget:
            return
        if self.maintenance is not None and self.recent.nbytes <= 2 * self.tail_bytes:
            self.maintenance.wake()
            # Slower and slower, rather than not at all once memory is full.
            if (beyond := self.recent.nbytes / self.tail_bytes - SLOWED) > 0:
                time.sleep(LONGEST_PAUSE * beyond / (2 - SLOWED))
            return
        try:
            self.checkpoint()
        except (OSError, ValueError) as error:
            where = self.catalog.folder
            message = f"the vault at {where} could not write a segment ({error}); it keeps events in memory"
            warnings.warn(message, stacklevel=4)
            self.tail_bytes += self.tail_bytes // 4

    @property
    def over_budget(self) -> bool:
        """Whether recent events should go to a segment."""
        return self.recent.nbytes > self.tail_bytes

    def delete_user(self, user: int) -> bool:
        """See ``SeqVault.delete_user``."""
        ids = user_ids(user)
        with self._appending:
            known = bool(self._read(ids, last_n=1, fields=self._layout.names[:1]).lengths[0])
            self.recent.delete(ids, self.lock)
            return known

    def set_derived(self, field: str, ids: Any, values: Any) -> None:
        """See ``SeqVault.set_derived``."""
        with self.committing:
            table = self.catalog.files.tables.checked(self._layout, field, ids, values)
            self.catalog.save_table(table, self.lock)

    def checkpoint(self) -> None:
        """See ``SeqVault.checkpoint``."""
        with self.committing:
            with self._appending:
                frozen = self.recent.freeze(self.lock)
            if frozen is None:
                return
            recent, catalog = self.recent, self.catalog
            assert recent.log is not None
            log = recent.log.number, recent.log.first_sequence
            try:
                segments = catalog.manifest.segments
                ids = catalog.files.ids if segments else catalog.choose_ids(frozen.users[: frozen.stop], frozen.events)
                self.commit(catalog.stage(recent.blocks(frozen, ids, self.lock)), ids, frozen=frozen, log=log)
            except BaseException:
                with self.lock:
                    recent.tail.thaw(frozen)
                raise
        self.save_index(only_due=True)
        if self.maintenance is not None:
            self.maintenance.wake()

    def compact(self, keep_last: int | None, keep_since: int | None) -> None:
        """See ``SeqVault.compact``."""
        with contextlib.nullcontext() if self.maintenance is None else self.maintenance.paused(), self.committing:
            self.checkpoint()
            catalog, most = self.catalog, FOREVER if keep_last is None else keep_last
            ids = catalog.choose_ids(*sample(self._layout, catalog.index, catalog.files))
            packed = repack(self._layout, catalog.index, catalog.files, ids, most, keep_since)
            self.commit(catalog.stage(packed), ids, replacing=catalog.manifest.segments)
            self.save_index()

    def finish(self) -> None:
        """Make everything durable and leave what makes the next opening quick."""
        if self.maintenance is not None:
            self.maintenance.stop()
        with self.committing:
            self.sync()
            if self.recent.size >= CLOSE_EVENTS or self.recent.forgotten:
                with contextlib.suppress(OSError):  # the log has everything
                    self.checkpoint()
            self.save_index()
