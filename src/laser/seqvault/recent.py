"""What no segment has yet: appends and deletions in the log and in memory, written here or read from another's log."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from laser.seqvault import log
from laser.seqvault.catalog import Catalog
from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.index import ENTRY, Index
from laser.seqvault.layout import Layout
from laser.seqvault.log import sealed
from laser.seqvault.recovery import LogFollower, remove_shards, remove_strays
from laser.seqvault.single import MOST, SingleEvents
from laser.seqvault.staging import Block
from laser.seqvault.storing import pack_events
from laser.seqvault.syncing import Syncer
from laser.seqvault.tail import Frozen, Tail


class Recent:
    """Recent operations of an open vault. Not thread-safe: the vault's lock guards it.

    Raises:
        ValueError: when a log is damaged.
    """

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self.folder, self.catalog = folder, catalog
        self.log: log.LogWriter | None = None
        """The log being written; ``None`` for a reader."""
        self._memory, self._single = Tail(self._layout), SingleEvents(self._layout)
        self._follower: LogFollower | None = None
        self._syncer: Syncer | None = None
        self.follow()

    @property
    def _layout(self) -> Layout:
        return self.catalog.manifest.layout

    @property
    def tail(self) -> Tail:
        """Recent events in memory, single ones included; hold the vault's lock, for these are linked in now."""
        if len(self._single):
            self._link()
        return self._memory

    def _link(self) -> None:
        single, index = self._single, self.catalog.index
        records = single.take()
        try:
            self._memory.append_records(records, single.size, single.places, index.table, index.rows)
        except BaseException as error:
            self.stop(error)  # the log has what memory lacks
            raise

    @property
    def size(self) -> int:
        """Recent events, deleted ones included. Needs no lock."""
        return self._memory.size + len(self._single)

    @property
    def forgotten(self) -> set[int]:
        """Users deleted since the last checkpoint; as the tail's, without linking single events."""
        return self._memory.forgotten

    @property
    def nbytes(self) -> int:
        """Memory for events, about. Needs no lock."""
        return self.size * (self._layout.event_bytes + 12)

    def follow(self) -> None:
        """Read the logs as far as they are written; those from the first one on when a checkpoint has moved it."""
        while True:
            if self._follower is None:
                self._memory = Tail(self._layout)
                self._follower = LogFollower(self.folder, self.catalog.manifest)
            with contextlib.suppress(FileNotFoundError):  # removed by a checkpoint: the manifest has moved on
                self._follower.catch_up(self._apply)
            before = self.catalog.manifest
            if not self.catalog.refresh():
                return
            after = self.catalog.manifest
            if after.first_log == before.first_log and after.generation > before.generation:
                for user in self.forgotten:
                    self.catalog.index.forget(user)
                continue
            self.catalog.files.ids.roll_back()
            self._follower.close()
            self._follower = None

    def _apply(self, record: log.Record) -> None:
        if record.kind == log.DELETE:
            for user in record.users:
                self.catalog.index.forget(user)
                self.tail.forget(user)
        else:
            self.tail.append(record.users, record.events, self.catalog.index.table, self.catalog.index.rows)

    def start_writing(self, syncer: Syncer) -> None:
        """Cut what a crash left unfinished, and begin a log; the caller holds the writer's lock."""
        assert self._follower is not None
        self._follower.repair()
        remove_strays(self.folder, self.catalog.manifest)
        remove_shards(self.folder)
        number, sequence = self._follower.number, self._follower.expected
        self.log = log.LogWriter(self.folder, number, self._layout, sequence)
        self._syncer = syncer
        syncer.follow(self.log)
        # Compiled before the first append: where the disk is too full to cache a kernel, its compilation fails.
        none = np.empty(0, np.uint64)
        Tail(self._layout).append(none, self._layout.empty(0), self.catalog.index.table, self.catalog.index.rows)

    def append(self, users: np.ndarray, events: dict[str, np.ndarray], lock: threading.RLock) -> None:
        """Log and keep events of the layout's types; one call at a time. ``lock``, the vault's, is held for memory."""
        payload = b"".join([users.tobytes(), *(events[name].tobytes() for name in self._layout.names)])
        self._write(log.Record(0, log.APPEND, users, events), payload, lock)

    def delete(self, users: np.ndarray, lock: threading.RLock) -> None:
        """Log and perform the deletion of one user; as ``append``."""
        self._write(log.Record(0, log.DELETE, users, {}), users.tobytes(), lock)

    def _write(self, record: log.Record, payload: bytes, lock: threading.RLock) -> None:
        assert self.log is not None
        assert self._syncer is not None
        self.log.write(record.kind, len(record.users), payload)
        try:
            with lock:
                self._apply(record)
        except BaseException as error:
            self.stop(error)  # the log has what memory lacks
            raise
        self._syncer.wrote()

    def append_one(self, user: int, event: Mapping[str, Any], lock: threading.RLock) -> bool | None:
        """Log and keep one event, as ``append``.

        Returns:
            Whether it is time to look at the memory budget; ``None`` when nothing was done because the event needs the
            checks of an ordinary append.
        """
        log, single = self.log, self._single
        assert log is not None
        assert self._syncer is not None
        record = single.pack(log.sequence, log.flags, user, event)
        if record is None:
            return None
        log.write_record(sealed(record))
        with lock:
            if single.add(record) >= MOST:
                self._link()
        self._syncer.wrote()
        return log.sequence % MOST == 0

    def freeze(self, lock: threading.RLock) -> Frozen | None:
        """Begin a log, and mark what is recent now; ``None`` when nothing is. Nothing may be appended meanwhile.

        Raises:
            OSError: when the new log cannot be written; everything stays as it was.
        """
        assert self.log is not None
        with lock:
            if not self.tail.size and not self.tail.forgotten:
                return None
        if self.log.records:
            self.log.sync()  # so that no later log is durable before this one
            self._move_to(log.LogWriter(self.folder, self.log.number + 1, self._layout, self.log.sequence))
        with lock:
            return self.tail.freeze()

    def _move_to(self, new: log.LogWriter) -> None:
        assert self.log is not None
        assert self._syncer is not None
        old, self.log = self.log, new
        self._syncer.follow(new)
        old.close()

    def blocks(self, frozen: Frozen, ids: Dictionaries, lock: threading.RLock) -> Iterator[Block]:
        """Frozen operations as edits and packed chunks."""
        coded = frozen.coded(ids, lock)
        if frozen.forgotten:
            entries = np.zeros(len(frozen.forgotten), ENTRY)
            entries["user"] = sorted(frozen.forgotten)
            yield np.empty(0, np.uint64), entries
        if len(frozen.kept):
            events = {name: values[frozen.kept] for name, values in coded.items()}
            index, files = self.catalog.index, self.catalog.files
            yield from pack_events(self._layout, index, files, frozen.users[frozen.kept], events)

    def since(self, frozen: Frozen, index: Index, ids: Dictionaries, lock: threading.RLock) -> Tail:
        """The tail that is left when ``index`` has what is frozen. Nothing may be appended meanwhile."""
        with lock:
            tail = self.tail
            if tail.forgotten:
                tail.coded(ids)  # what was deleted is dropped now, but other processes give its ids codes
        return tail.since(frozen, index)

    def replace_tail(self, tail: Tail) -> None:
        """Go on with this tail; hold the vault's lock."""
        self._memory = tail

    def stop(self, error: BaseException) -> None:
        """Take no more: it is not known which state is on disk."""
        assert self.log is not None
        self.log.failed = OSError(str(error))

    def remove_old_logs(self) -> None:
        """Remove the logs before the manifest's first."""
        first = log.file_name(self.catalog.manifest.first_log)
        self.catalog.remove(path.name for path in self.folder.glob("*.wal") if path.name < first)

    def close(self) -> None:
        """Close the log."""
        if self._follower is not None:
            self._follower.close()
        if self.log is not None:
            self.log.close()
