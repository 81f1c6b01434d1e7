"""The writing side of an open vault: appends, deletions, and the steps that move events into segments."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from laser.seqvault.catalog import Block, Catalog
from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.layout import user_ids
from laser.seqvault.planning import FOREVER
from laser.seqvault.ragged import Ragged
from laser.seqvault.recent import Recent
from laser.seqvault.storing import pack_events, repack, sample
from laser.seqvault.syncing import Syncer

CLOSE_EVENTS = 4096
"""Closing moves recent events to a segment when there are this many; fewer are quicker to replay."""
BULK_EVENTS = 1 << 17
"""Appends of at least this many events go to a segment directly, and are durable when the call returns."""


class Writer:
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
        self._catalog, self._recent, self._lock, self._read = catalog, recent, lock, read
        self.tail_bytes = tail_bytes
        recent.start_writing(syncer)
        if catalog.index_lost:
            self._save_index()

    def append(self, users: Any, events: Mapping[str, Any]) -> int:
        """See ``SeqVault.append``."""
        layout, ids = self._catalog.manifest.layout, user_ids(users)
        values = layout.coerce(events, len(ids))
        with self._lock:
            admitted = self._catalog.manifest.admission.admit(layout, ids, values, self._read)
            if not admitted.all():
                ids, values = ids[admitted], {name: column[admitted] for name, column in values.items()}
            if not len(ids):
                return 0
            if len(ids) >= BULK_EVENTS:
                self.checkpoint()
                self._append_bulk(ids, values)
                return len(ids)
            self._recent.append(ids, values)
            self._keep_budget()
            return len(ids)

    def _append_bulk(self, users: np.ndarray, events: dict[str, np.ndarray]) -> None:
        catalog = self._catalog
        ids = catalog.files.ids if catalog.manifest.segments else catalog.choose_ids(users, events)
        try:
            coded = ids.encode(events)
            self._commit(pack_events(catalog.manifest.layout, catalog.index, catalog.files, users, coded), ids)
        except BaseException:
            ids.roll_back()  # events of the next append must get the codes that readers of the log give them
            raise

    def append_one(self, user: int, event: Mapping[str, Any]) -> int:
        """See ``SeqVault.append_one``."""
        with self._lock:
            payload = self._recent.pack_one(user, event)
            if payload is None or self._catalog.selective:
                return self.append([user], {name: [value] for name, value in event.items()})
            if self._recent.append_one(payload):
                self._keep_budget()
        return 1

    def _keep_budget(self) -> None:
        """Checkpoint when memory is full; if the disk is too, events stay in log and memory, which suffice."""
        if self._recent.nbytes <= self.tail_bytes:
            return
        try:
            self.checkpoint()
        except OSError as error:
            where = self._catalog.folder
            message = f"the vault at {where} could not write a segment ({error}); it keeps events in memory"
            warnings.warn(message, stacklevel=4)
            self.tail_bytes += self.tail_bytes // 4

    def delete_user(self, user: int) -> bool:
        """See ``SeqVault.delete_user``."""
        ids = user_ids(user)
        with self._lock:
            known = bool(self._read(ids, last_n=1, fields=self._catalog.manifest.layout.names[:1]).lengths[0])
            self._recent.delete(ids)
            return known

    def checkpoint(self) -> None:
        """See ``SeqVault.checkpoint``."""
        with self._lock:
            recent, catalog = self._recent, self._catalog
            tail = recent.tail
            if tail.size or tail.forgotten:
                segments = catalog.manifest.segments
                ids = catalog.files.ids if segments else catalog.choose_ids(tail.users[: tail.size], tail.events)
                self._commit(recent.blocks(ids), ids)

    def compact(self, keep_last: int | None, keep_since: int | None) -> None:
        """See ``SeqVault.compact``."""
        with self._lock:
            self.checkpoint()
            catalog, most = self._catalog, FOREVER if keep_last is None else keep_last
            layout = catalog.manifest.layout
            ids = catalog.choose_ids(*sample(layout, catalog.index, catalog.files))
            packed = repack(layout, catalog.index, catalog.files, ids, most, keep_since)
            self._commit(packed, ids, replace=True)
            self._save_index()

    def _commit(self, packed: Iterable[Block], ids: Dictionaries, *, replace: bool = False) -> None:
        """Write segments, begin a new log, switch, and drop the old log and the memory."""
        recent = self._recent
        new = recent.next_log()
        try:
            self._catalog.commit(packed, (new.number, new.sequence), ids, replace=replace)
        except BaseException as error:
            recent.discard(new, error)
            raise
        recent.move_to(new)
        if self._catalog.snapshot_due:
            self._save_index()

    def sync(self) -> None:
        """See ``SeqVault.sync``."""
        with self._lock:
            log = self._recent.log
            assert log is not None
            log.sync()

    def finish(self) -> None:
        """Make everything durable and leave what makes the next opening quick."""
        with self._lock:
            self.sync()
            if self._recent.tail.size >= CLOSE_EVENTS or self._recent.tail.forgotten:
                with contextlib.suppress(OSError):  # the log has everything
                    self.checkpoint()
            self._save_index()

    def _save_index(self) -> None:
        """Save the index where that is possible; without it the next opening takes longer."""
        # While a deletion is only in the log, the index is ahead of the segments and must not be saved.
        if not self._recent.tail.forgotten:
            with contextlib.suppress(OSError):
                self._catalog.save_index()
