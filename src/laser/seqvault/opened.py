"""An open vault: its parts, its end, and all that it answers. ``SeqVault`` adds how it is opened, and what changes it.

Legend of shape suffixes: R requests of a read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from laser.seqvault import checking
from laser.seqvault.admission import Admission
from laser.seqvault.cache import ChunkCache
from laser.seqvault.catalog import Catalog
from laser.seqvault.checking import Problem
from laser.seqvault.layout import Layout, user_ids
from laser.seqvault.lengths import history_lengths
from laser.seqvault.lock import WriterLock
from laser.seqvault.maintenance import LOW_WATER, Maintenance
from laser.seqvault.marks import MARK_USER, mark_count
from laser.seqvault.merging import prepare
from laser.seqvault.padded import Align, row_length, write_out
from laser.seqvault.ragged import Ragged
from laser.seqvault.reading import Answer
from laser.seqvault.recent import Recent
from laser.seqvault.requesting import Request
from laser.seqvault.statistics import statistics
from laser.seqvault.syncing import Sync, Syncer
from laser.seqvault.writing import Writer


class OpenVault:
    """A vault open for reading or writing. Safe to share between threads; reads overlap."""

    def __init__(
        self,
        path: Path | str,
        mode: Literal["r", "a"],
        sync: Sync,
        tail_bytes: int,
        maintenance_rate: float | None = None,
        low_water: float = LOW_WATER,
        cache_bytes: int = 0,
    ) -> None:
        self.path, self.mode = Path(path), mode
        self._lock = threading.RLock()
        self._closed = False
        self._recent: Recent | None = None
        self._writer: Writer | None = None
        _require_maintainable(maintenance_rate, low_water)
        self._syncer, self._writer_lock = Syncer(sync if mode == "a" else "none"), None
        try:
            self._writer_lock = WriterLock(self.path) if mode == "a" else None
            self._catalog = Catalog(self.path)
            self._cache = ChunkCache(cache_bytes, self.layout) if cache_bytes else None
            self._recent = Recent(self.path, self._catalog)
            if mode == "a":
                read = self.read
                self._writer = Writer(self._catalog, self._recent, self._syncer, self._lock, read, tail_bytes)
                if maintenance_rate != 0:
                    self._writer.maintenance = Maintenance(self._writer, maintenance_rate, low_water)
        except BaseException:
            self._release()
            raise

    @property
    def layout(self) -> Layout:
        """Fields of an event."""
        return self._catalog.manifest.layout

    @property
    def policies(self) -> Admission:
        """What becomes of late and of duplicate events."""
        return self._catalog.manifest.admission

    def read(
        self,
        users: Any,
        *,
        before: int | np.ndarray | None = None,
        last_n: int | None = None,
        fields: Iterable[str] | None = None,
        ids: Literal["raw", "codes"] = "raw",
        where: Mapping[str, Any] | None = None,
    ) -> Ragged:
        """Histories of R users, in the order asked for, events oldest first; events of equal time as they arrived.

        Args:
            users: integer ids [R]; may repeat. A user not in the vault has a history of length 0.
            before: only events with a timestamp strictly below this one; one for all or one per request.
            last_n: at most this many events, the newest; ``None`` for all.
            fields: names of the fields to return, all by default; ``[]`` only counts: offsets without an array.
            ids: ``"codes"`` returns int32 codes in the fields that have a dictionary: positions in ``dictionary``, the
                same in every process and for good.
            where: only events that hold one of these values in each of these fields (whole numbers, one per event,
                derived ones too): ``{"scenario": [1, 3]}``. ``last_n`` counts the events returned. Decodes the fields
                filtered by, and of the others what lies between matches; a value that no event has matches nothing.

        Returns:
            One array of the field's dtype per field, and int64 offsets [R + 1].

        Raises:
            ValueError: on bad arguments, or when stored data is damaged (with file and offset).
        """
        options = {"before": before, "last_n": last_n, "fields": fields, "ids": ids, "where": where}
        return self._answer(Request.of(self.layout, users, **options)).ragged()

    def read_into(
        self,
        users: Any,
        out: Mapping[str, np.ndarray],
        *,
        before: int | np.ndarray | None = None,
        last_n: int | None = None,
        ids: Literal["raw", "codes"] = "raw",
        where: Mapping[str, Any] | None = None,
        align: Align = "right",
        fill: int = 0,
    ) -> np.ndarray:
        """``read``, decoded straight into the caller's arrays (of pinned memory, for example), without a copy between.

        Args:
            users: see ``read``.
            out: per field to read a contiguous array of its dtype (int32 for codes). Padded: [R, L], or
                [R, L, length] for a field of several values; packed: [T] or [T, length], T at least the events read.
            before: see ``read``.
            last_n: see ``read``; padded rows hold the newest L at most.
            ids: see ``read``.
            where: see ``read``.
            align: where the events of a row go, ``"right"`` (the newest last in the row) or ``"left"``; ``"packed"``
                puts all histories one after the other.
            fill: value of the places of padded rows that hold no event.

        Returns:
            int64 [R], the events of each request.

        Raises:
            ValueError: on bad arguments, or when an array has the wrong type, shape or memory order or is too short:
                nothing is written then. When stored data is damaged (with file and offset).
        """
        names, requests = list(out), len(user_ids(users))
        length = row_length(out, requests, align)
        most = last_n if length is None or (last_n is not None and last_n < length) else length
        options = {"before": before, "last_n": most, "fields": names, "ids": ids, "where": where}
        return write_out(self._answer(Request.of(self.layout, users, **options)), out, length, align, fill)

    def _answer(self, request: Request) -> Answer:
        with self._lock:
            tail = self._opened().tail
            finish = prepare(self._catalog.index, self._catalog.files, tail, self.layout, request, self._cache)
        return finish()

    def dictionary(self, field: str) -> np.ndarray:
        """Ids of a field by code, of the field's dtype; those not yet in a segment included.

        Raises:
            ValueError: when the field has no dictionary.
        """
        with self._lock:
            tail, known = self._opened().tail, self._catalog.files.ids
            if field not in known.by_field:
                raise ValueError(f"field {field!r} has no dictionary; those that have one: {sorted(known.by_field)}")
            tail.coded(known)
            found = known.by_field[field]
            return found.ids.view(found.field.dtype).copy()

    def users(self) -> np.ndarray:
        """Ids of all users with at least one event, uint64, ascending; without the user of a follower's marks."""
        with self._lock:
            tail, index = self._opened().tail, self._catalog.index
            found = np.union1d(index.users, tail.slots["user"][tail.slots["count"] > 0])
            return found[found != MARK_USER] if mark_count(index, tail) else found

    def lengths(self, users: Any) -> np.ndarray:
        """Events of each of R users, int64 [R], counted without reading them."""
        with self._lock:
            return history_lengths(self._catalog.index, self._opened().tail, user_ids(users))

    def refresh(self) -> None:
        """See what the writing process has appended since opening or the last call; a writer always does.

        Raises:
            ValueError: when what it wrote is damaged.
        """
        with self._lock:
            recent = self._opened()
            if self._writer is None:
                recent.follow()

    def check(self) -> list[Problem]:
        """Examine every byte of the files; returns what is wrong, nothing when all is well."""
        self._opened()
        if self._writer is None:
            return checking.check_folder(self.path)
        with self._writer.committing:
            return checking.check_folder(self.path)

    def stats(self) -> dict[str, int | float]:
        """Figures about the vault: counts, bytes on disk and in memory."""
        with self._lock:
            found = statistics(self._catalog, self._opened().tail, self.path)
            return found | (self._cache.stats() if self._cache else {})

    def close(self) -> None:
        """Make everything durable and let the next writer in. Closing twice is fine."""
        if self._closed:
            return
        try:
            if self._writer is not None:
                self._writer.finish()
        finally:
            with self._lock:
                self._release()

    def _release(self) -> None:
        self._closed = True
        self._syncer.stop()
        if self._recent is not None:
            self._recent.close()
        if self._writer_lock is not None:
            self._writer_lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> Recent:
        if self._closed or self._recent is None:
            raise ValueError(f"the vault at {self.path} is closed; open it again")
        return self._recent

    def _writing(self) -> Writer:
        if self._closed or self._writer is None:
            self._opened()
            raise ValueError(f"the vault at {self.path} is open for reading; open it with mode 'a' to change it")
        return self._writer


def _require_maintainable(rate: float | None, low_water: float) -> None:
    if rate is not None and not rate >= 0:
        raise ValueError(f"maintenance_rate is {rate}; expected bytes a second, 0 for none, or None for no limit")
    if not 0 <= low_water <= 0.9:
        raise ValueError(f"low_water is {low_water}; expected a share of live bytes, 0 ... 0.9")
