"""Segments, index and manifest of a vault, and the atomic step from one state to the next."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from laser.seqvault import derived, snapshot
from laser.seqvault.admission import Admission
from laser.seqvault.choosing import paying_fields
from laser.seqvault.derived import ByCode, Table, Tables
from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.durable import sync_directory
from laser.seqvault.fetching import SegmentFiles
from laser.seqvault.index import MAX_SEGMENT_WORDS, MAX_SLOTS, Index
from laser.seqvault.manifest import Manifest, SegmentEntry
from laser.seqvault.segment import Segment, SegmentWriter
from laser.seqvault.staging import Block, Staged, Step

SEGMENT_BYTES = 256 << 20
"""A segment is closed when it has grown this large."""
SNAPSHOT_EVERY = 16
"""Segments written before the index is saved again without being asked."""


class Catalog:
    """The durable part of an open vault. Not thread-safe: the vault's lock guards it.

    Raises:
        ValueError: when there is no vault in ``folder``, or a file of it is damaged or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers, self._next_number = threading.Lock(), 0
        self.written = 0
        """Bytes of segments written since opening."""
        self.in_doubt = False
        """Whether a failure left open which state is on disk; only opening the vault again can tell."""
        self.index_lost = False
        self.manifest = Manifest.load(folder)
        self._until_complete(self._load)

    def refresh(self) -> bool:
        """Catch up with the manifest on disk; whether it had changed. What has stayed the same is not read again.

        Raises:
            ValueError: when a file that is new is damaged; all is then as before the call.
        """
        if Manifest.load(self.folder).generation == self.manifest.generation:
            return False
        self._until_complete(self._advance)
        return True

    def _until_complete(self, load: Callable[[Manifest], None]) -> None:
        for attempt in range(8):
            found = Manifest.load(self.folder)
            try:
                load(found)
                return
            except FileNotFoundError as error:
                # A writer may have replaced the manifest, and removed the old files, since we read it.
                if attempt == 7 or Manifest.load(self.folder).generation == found.generation:
                    raise ValueError(f"{error.filename} is missing; restore it from a copy") from None

    def _load(self, manifest: Manifest) -> None:
        opened = self._opened(manifest, {})
        ids = Dictionaries(self.folder, manifest.layout, manifest.dictionaries)
        files = SegmentFiles(opened, ids, Tables(self.folder, manifest.layout, manifest.tables))
        index = self._built(manifest, opened)
        self.manifest, self.files, self.index = manifest, files, index

    def _advance(self, manifest: Manifest) -> None:
        old = self.manifest
        if manifest.generation < old.generation:  # another vault in the same place
            self._load(manifest)
            return
        opened = self._opened(manifest, {segment.number: segment for segment in self.files.segments.values()})
        ids = self.files.ids.advanced(manifest.dictionaries)
        tables = Tables(self.folder, manifest.layout, manifest.tables, self.files.tables)
        files = SegmentFiles(opened, ids, tables, self.files.shares)
        if manifest.segments[: len(old.segments)] == old.segments:
            index, added = self.index, manifest.segments[len(old.segments) :]
            for entry, directory in [(entry, opened[entry.slot].directory()) for entry in added]:
                index.apply(directory, entry.slot)
            if manifest.snapshot != old.snapshot:
                index = index.compacted()  # now and then, or superseded records would gather
        else:
            index = self._built(manifest, opened)
        self.manifest, self.files, self.index = manifest, files, index

    def _opened(self, manifest: Manifest, known: Mapping[int, Segment]) -> dict[int, Segment]:
        """Segments by slot; those known by their number are not opened again."""
        return {
            entry.slot: known.get(entry.number) or Segment(self.folder, entry.number, manifest.layout)
            for entry in manifest.segments
        }

    def _built(self, manifest: Manifest, opened: Mapping[int, Segment]) -> Index:
        """The index from its snapshot and the segments that this lacks, or from all segments."""
        index, done, self.index_lost = Index(), 0, False
        if manifest.snapshot:
            try:
                index, done = snapshot.load(self.folder, manifest.snapshot), manifest.snapshot_segments
            except ValueError as error:
                if Manifest.load(self.folder).generation != manifest.generation:
                    raise FileNotFoundError(2, str(error), str(error)) from None  # replaced meanwhile: start again
                self.index_lost = True
                warnings.warn(f"{error}; the index is rebuilt from the segments", stacklevel=2)
        for entry in manifest.segments[done:]:
            index.apply(opened[entry.slot].directory(), entry.slot)
        return index

    def stage(self, blocks: Iterable[Block]) -> Staged:
        """Write blocks to as many segments as they need; nothing refers to these until ``save``. Needs no lock.

        Raises:
            OSError: when writing fails; nothing is left then.
        """
        staged = Staged()
        try:
            for packed, entries in blocks:
                assert len(packed) + SEGMENT_BYTES // 8 < MAX_SEGMENT_WORDS
                if not staged.writers or staged.writers[-1].bytes >= SEGMENT_BYTES:
                    staged.finish_last()
                    staged.writers.append(SegmentWriter(self.folder, self.reserve(), self.manifest.layout))
                staged.writers[-1].write(packed, entries)
                self.written += packed.nbytes
            staged.finish_last()
        except BaseException:
            staged.abandon()
            raise
        return staged

    def reserve(self, count: int = 1) -> int:
        """The first of so many file numbers that nobody else gets."""
        with self._numbers:
            first = max(self._next_number, self.manifest.next_number)
            self._next_number = first + count
            return first

    def save(
        self,
        staged: Staged,
        log: tuple[int, int],
        ids: Dictionaries,
        *,
        replacing: Sequence[SegmentEntry] = (),
        lock: AbstractContextManager[Any],
    ) -> Step:
        """Make the state with staged segments that of the files, durably; ``install`` makes it that of memory.

        Args:
            staged: segments that come last, or in the place of those that they replace.
            log: number and first sequence number of the log that follows; older ones are no longer needed.
            ids: dictionaries of the segments' codes, with ids that are not durable yet.
            replacing: adjacent segments that go.
            lock: the vault's; held while ids are looked at.

        Raises:
            OSError: when writing fails; the vault is then as before the call, but for ``in_doubt``.
            ValueError: when there are too many segments, or an earlier failure left the state in doubt.
        """
        old, switching = self.manifest, False
        try:
            self._require_certain()
            entries = self._entries(staged, {entry.slot for entry in old.segments})
            dictionaries = ids.save(lock)
            sync_directory(self.folder)
            at = old.segments.index(replacing[0]) if replacing else len(old.segments)
            segments = (*old.segments[:at], *entries, *old.segments[at + len(replacing) :])
            changes: dict[str, Any] = {"snapshot": 0, "snapshot_segments": 0} if at < old.snapshot_segments else {}
            changes |= {"segments": segments, "next_number": self.reserve(0), "dictionaries": dictionaries}
            manifest = old.successor(first_log=log[0], first_sequence=log[1], **changes)
            opened = {entry.slot: Segment(self.folder, entry.number, manifest.layout) for entry in entries}
            switching = True
            manifest.save(self.folder)
        except BaseException as error:
            if switching and self._moved_on(old):
                # Replaced, but perhaps not durably: the files of both states must stay.
                self.in_doubt = True
                raise OSError(f"{self.folder} may not have been made durable ({error}); open it again") from error
            staged.abandon()
            raise
        ids.saved(dictionaries)
        gone = {entry.slot for entry in replacing}
        stay = {slot: segment for slot, segment in self.files.segments.items() if slot not in gone}
        return Step(
            manifest,
            SegmentFiles({**stay, **opened}, ids, self.files.tables, self.files.shares),
            entries,
            staged.directories,
        )

    def _require_certain(self) -> None:
        if self.in_doubt:
            # The next state could get the name of one on disk, or cut a dictionary that this one counts on.
            raise ValueError(f"{self.folder} may not have been made durable earlier; open the vault again")

    def _moved_on(self, old: Manifest) -> bool:
        try:
            return Manifest.load(self.folder).generation != old.generation
        except (OSError, ValueError):
            return True  # unknown, which is dealt with alike

    def _entries(self, staged: Staged, taken: set[int]) -> tuple[SegmentEntry, ...]:
        free = [slot for slot in range(MAX_SLOTS) if slot not in taken][: len(staged.writers)]
        if len(free) < len(staged.writers):
            raise ValueError(f"{self.folder} has {MAX_SLOTS} segments, the most there can be; run compact")
        return tuple(
            SegmentEntry(writer.number, slot, writer.bytes, writer.events, len(directory))
            for writer, slot, directory in zip(staged.writers, free, staged.directories)
        )

    def install(self, step: Step, index: Index) -> None:
        """Make a saved state that of memory; hold the vault's lock."""
        self.manifest, self.files, self.index = step.manifest, step.files, index

    def remove(self, names: Iterable[str]) -> None:
        """Remove files that no state refers to any more; what cannot be removed is, at the next opening for writing."""
        for name in names:
            with contextlib.suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)

    def choose_ids(self, users: np.ndarray, events: dict[str, np.ndarray]) -> Dictionaries:
        """Dictionaries for a commit after which no segment without them remains, judged by a sample of events."""
        ids = self.files.ids
        return ids.with_added(paying_fields(ids, users, events)) if self.manifest.choose_dictionaries else ids

    def save_index(self, index: Index) -> None:
        """Save a snapshot of the index, compacted and without what is only in the log; the manifest then names it."""
        if self.in_doubt:
            return
        old, number = self.manifest, self.reserve()
        snapshot.save(self.folder, number, index)
        manifest = old.successor(snapshot=number, snapshot_segments=len(old.segments), next_number=self.reserve(0))
        try:
            manifest.save(self.folder)
        except OSError:
            if self._moved_on(old):
                self.manifest = manifest  # readers see it; should a crash bring the old one back, its files are there
            raise
        self.manifest = manifest
        self.index_lost = False
        if old.snapshot:
            self.remove([snapshot.file_name(old.snapshot)])

    def save_table(self, table: Table, lock: AbstractContextManager[Any]) -> None:
        """Give a derived field other values, durably; what is read from now on has them.

        ``lock``, the vault's, is held for memory only.

        Raises:
            OSError: when they cannot be written; everything is then as before, but for ``in_doubt``.
            ValueError: when an earlier failure left the state in doubt.
        """
        self._require_certain()
        old, number, name = self.manifest, self.reserve(), table.field.name
        table.save(self.folder, number)
        manifest = old.successor(tables={**old.tables, name: number}, next_number=self.reserve(0))
        try:
            sync_directory(self.folder)
            manifest.save(self.folder)
        except BaseException as error:
            if self._moved_on(old):
                self.in_doubt = True
                raise OSError(f"{self.folder} may not have been made durable ({error}); open it again") from error
            self.remove([derived.file_name(number)])
            raise
        with lock:
            self.manifest = manifest
            self.files.tables.by_field[name] = ByCode(table)
        if name in old.tables:
            self.remove([derived.file_name(old.tables[name])])

    @property
    def index_saved(self) -> bool:
        """Whether the snapshot has all segments."""
        manifest = self.manifest
        return manifest.snapshot > 0 and manifest.snapshot_segments == len(manifest.segments) and not self.index_lost

    @property
    def selective(self) -> bool:
        """Whether some events may be left out or refused."""
        return self.manifest.admission != Admission()

    @property
    def snapshot_due(self) -> bool:
        """Whether many segments have been written since the index was saved."""
        return len(self.manifest.segments) - self.manifest.snapshot_segments >= SNAPSHOT_EVERY
