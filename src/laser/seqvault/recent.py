"""What no segment has yet: appends and deletions in the log and in memory, written here or read from another's log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from laser.seqvault import log
from laser.seqvault.catalog import Block, Catalog
from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.index import ENTRY
from laser.seqvault.layout import Layout
from laser.seqvault.recovery import LogFollower, remove_strays
from laser.seqvault.single import MOST, SingleEvents
from laser.seqvault.storing import pack_events
from laser.seqvault.syncing import Syncer
from laser.seqvault.tail import Tail


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
        """Recent events in memory, single ones included."""
        if len(self._single):
            users, events = self._single.take()
            self._memory.append(users, events, self.catalog.index.table, self.catalog.index.rows)
        return self._memory

    @property
    def nbytes(self) -> int:
        """Memory for events, about."""
        return self.tail.size * (self._layout.event_bytes + 12)

    def follow(self) -> None:
        """Read the logs as far as they are written, from the beginning when the manifest has moved on meanwhile."""
        while True:
            if self._follower is None:
                self._memory = Tail(self._layout)
                self._follower = LogFollower(self.folder, self.catalog.manifest)
            with contextlib.suppress(FileNotFoundError):  # removed by a checkpoint: the manifest has moved on
                self._follower.catch_up(self._apply)
            if not self.catalog.refresh():
                return
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
        number, sequence = self._follower.number, self._follower.expected
        self.log = log.LogWriter(self.folder, number, self._layout, sequence)
        self._syncer = syncer
        syncer.follow(self.log)

    def append(self, users: np.ndarray, events: dict[str, np.ndarray]) -> None:
        """Log and keep events of the layout's types."""
        payload = b"".join([users.tobytes(), *(events[name].tobytes() for name in self._layout.names)])
        self._write(log.Record(0, log.APPEND, users, events), payload)

    def delete(self, users: np.ndarray) -> None:
        """Log and perform the deletion of one user."""
        self._write(log.Record(0, log.DELETE, users, {}), users.tobytes())

    def _write(self, record: log.Record, payload: bytes) -> None:
        assert self.log is not None
        assert self._syncer is not None
        self.log.write(record.kind, len(record.users), payload)
        self._apply(record)
        self._syncer.wrote()

    def pack_one(self, user: int, event: Mapping[str, Any]) -> bytes | None:
        """An event for ``append_one``; ``None`` when it needs the checks of an ordinary append."""
        return self._single.pack(user, event)

    def append_one(self, payload: bytes) -> bool:
        """Log and keep a packed event; whether it is time to look at the memory budget."""
        assert self.log is not None
        assert self._syncer is not None
        self.log.write(log.APPEND, 1, payload)
        self._single.add(payload)
        self._syncer.wrote()
        return len(self._single) >= MOST

    def blocks(self, ids: Dictionaries) -> Iterator[Block]:
        """Everything recent as edits and packed chunks."""
        tail = self.tail
        tail.coded(ids)  # also what was deleted since: other processes gave its ids codes
        if tail.forgotten:
            entries = np.zeros(len(tail.forgotten), ENTRY)
            entries["user"] = sorted(tail.forgotten)
            yield np.empty(0, np.uint64), entries
        kept = tail.kept()
        if len(kept):
            events = {name: values[kept] for name, values in tail.coded(ids).items()}
            yield from pack_events(self._layout, self.catalog.index, self.catalog.files, tail.users[kept], events)

    def next_log(self) -> log.LogWriter:
        """A new, empty log that would follow the present one."""
        assert self.log is not None
        return log.LogWriter(self.folder, self.log.number + 1, self._layout, self.log.sequence)

    def discard(self, new: log.LogWriter, error: BaseException) -> None:
        """The step to the ``new`` log failed: stay, or stop writing if it may have been taken on disk."""
        new.close()
        if self.catalog.in_doubt:
            assert self.log is not None
            self.log.failed = OSError(str(error))
        else:
            new.path.unlink(missing_ok=True)

    def move_to(self, new: log.LogWriter) -> None:
        """All recent events are in segments: go on with the ``new`` log and empty memory."""
        assert self.log is not None
        assert self._syncer is not None
        old, self.log, self._memory = self.log, new, Tail(self._layout)
        self._syncer.follow(new)
        old.close()
        remove_strays(self.folder, self.catalog.manifest)

    def close(self) -> None:
        """Close the log."""
        if self._follower is not None:
            self._follower.close()
        if self.log is not None:
            self.log.close()
