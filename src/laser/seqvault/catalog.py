"""Segments, index and manifest of a vault, and the atomic step from one state to the next."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from laser.seqvault import snapshot
from laser.seqvault.admission import Admission
from laser.seqvault.choosing import paying_fields
from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.durable import sync_directory
from laser.seqvault.index import MAX_SEGMENT_WORDS, MAX_SLOTS, Index
from laser.seqvault.manifest import Manifest, SegmentEntry
from laser.seqvault.reading import SegmentFiles
from laser.seqvault.segment import Segment, SegmentWriter, file_name

SEGMENT_BYTES = 256 << 20
"""A segment is closed when it has grown this large."""
SNAPSHOT_EVERY = 16
"""Segments written before the index is saved again without being asked."""

Block = tuple[np.ndarray, np.ndarray]
"""Packed chunks (words) and their directory entries."""


class Catalog:
    """The durable part of an open vault. Not thread-safe: the vault's lock guards it.

    Raises:
        ValueError: when there is no vault in ``folder``, or a file of it is damaged or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written = 0
        """Bytes of segments written since opening."""
        self.in_doubt = False
        """Whether a failure left open which state is on disk; only opening the vault again can tell."""
        for attempt in range(8):
            self.manifest = Manifest.load(folder)
            try:
                self._load()
                return
            except FileNotFoundError as error:
                # A writer may have replaced the manifest, and removed the old files, since we read it.
                if attempt == 7 or Manifest.load(folder).generation == self.manifest.generation:
                    raise ValueError(f"{error.filename} is missing; restore it from a copy") from None

    def _load(self) -> None:
        manifest = self.manifest
        opened = {entry.slot: Segment(self.folder, entry.number, manifest.layout) for entry in manifest.segments}
        ids = Dictionaries(self.folder, manifest.layout, manifest.dictionaries)
        self.files = SegmentFiles(opened, ids)
        self.index, done, self.index_lost = Index(), 0, False
        if manifest.snapshot:
            try:
                self.index, done = snapshot.load(self.folder, manifest.snapshot), manifest.snapshot_segments
            except ValueError as error:
                if Manifest.load(self.folder).generation != manifest.generation:
                    raise FileNotFoundError(str(error)) from None  # replaced meanwhile: start again
                self.index_lost = True
                warnings.warn(f"{error}; the index is rebuilt from the segments", stacklevel=2)
        for entry in manifest.segments[done:]:
            self.index.apply(opened[entry.slot].directory(), entry.slot)

    def refresh(self) -> bool:
        """Catch up with the manifest on disk; whether it had changed."""
        found = Manifest.load(self.folder)
        if found.generation == self.manifest.generation:
            return False
        fresh = Catalog(self.folder)
        self.manifest, self.files, self.index = fresh.manifest, fresh.files, fresh.index
        return True

    def commit(
        self, blocks: Iterable[Block], log: tuple[int, int], ids: Dictionaries, *, replace: bool = False
    ) -> None:
        """Write blocks as segments and switch to the state that has them.

        Args:
            blocks: packed chunks and edits; packing may read the present state.
            log: number and first sequence number of the log that follows; older ones are no longer needed.
            ids: dictionaries of the blocks' codes, with ids that are not durable yet.
            replace: the new segments replace all present ones instead of following them.

        Raises:
            OSError: when writing fails; the vault is then as before the call.
        """
        writers: list[SegmentWriter] = []
        try:
            directories = self._write(blocks, writers)
            taken = set() if replace else {entry.slot for entry in self.manifest.segments}
            free = [s for s in range(MAX_SLOTS) if s not in taken][: len(writers)]
            entries = tuple(
                SegmentEntry(writer.number, slot, writer.bytes, writer.events, len(directory))
                for writer, slot, directory in zip(writers, free, directories)
            )
            if len(free) < len(writers):
                raise ValueError(f"{self.folder} has {MAX_SLOTS} segments, the most there can be; run compact")
            self._switch(entries, directories, log, ids, replace)
        except BaseException as error:
            if Manifest.load(self.folder).generation != self.manifest.generation:
                # Replaced, but perhaps not durably: the files of both states must stay.
                self.in_doubt = True
                raise OSError(f"{self.folder} may not have been made durable ({error}); open it again") from error
            for writer in writers:
                writer.abandon()
            raise

    def _write(self, blocks: Iterable[Block], writers: list[SegmentWriter]) -> list[np.ndarray]:
        """Write blocks to as many segments as they need; returns the directories."""
        number = self.manifest.next_number
        directories = []
        for packed, entries in blocks:
            assert len(packed) + SEGMENT_BYTES // 8 < MAX_SEGMENT_WORDS
            if not writers or writers[-1].bytes >= SEGMENT_BYTES:
                if writers:
                    directories.append(writers[-1].finish())
                writers.append(SegmentWriter(self.folder, number, self.manifest.layout))
                number += 1
            writers[-1].write(packed, entries)
            self.written += packed.nbytes
        if writers:
            directories.append(writers[-1].finish())
        return directories

    def _switch(
        self,
        entries: tuple[SegmentEntry, ...],
        directories: list[np.ndarray],
        log: tuple[int, int],
        ids: Dictionaries,
        replace: bool,
    ) -> None:
        dictionaries = ids.save()
        sync_directory(self.folder)
        old, (first_log, first_sequence) = self.manifest, log
        changes: dict[str, Any] = {"snapshot": 0, "snapshot_segments": 0} if replace else {}
        segments = entries if replace else old.segments + entries
        number = max([old.next_number, *(entry.number + 1 for entry in entries)])
        changes |= {"segments": segments, "next_number": number, "dictionaries": dictionaries}
        manifest = old.successor(first_log=first_log, first_sequence=first_sequence, **changes)
        opened = {entry.slot: Segment(self.folder, entry.number, manifest.layout) for entry in entries}
        manifest.save(self.folder)
        self.manifest = manifest
        ids.saved(dictionaries)
        self.files = SegmentFiles(opened if replace else {**self.files.segments, **opened}, ids)
        if replace:
            self.index = Index()
        for entry, directory in zip(entries, directories):
            self.index.apply(directory, entry.slot)
        if replace:
            for entry in old.segments:
                (self.folder / file_name(entry.number)).unlink(missing_ok=True)
            if old.snapshot:
                (self.folder / snapshot.file_name(old.snapshot)).unlink(missing_ok=True)

    def choose_ids(self, users: np.ndarray, events: dict[str, np.ndarray]) -> Dictionaries:
        """Dictionaries for a commit after which no segment without them remains, judged by a sample of events."""
        ids = self.files.ids
        return ids.with_added(paying_fields(ids, users, events)) if self.manifest.choose_dictionaries else ids

    def save_index(self) -> None:
        """Save a snapshot of the index and make the manifest name it."""
        old = self.manifest
        if old.snapshot and old.snapshot_segments == len(old.segments) and not self.index_lost:
            return
        self.index = self.index.compacted()
        snapshot.save(self.folder, old.next_number, self.index)
        self.manifest = old.successor(
            snapshot=old.next_number, snapshot_segments=len(old.segments), next_number=old.next_number + 1
        )
        self.manifest.save(self.folder)
        self.index_lost = False
        if old.snapshot:
            (self.folder / snapshot.file_name(old.snapshot)).unlink(missing_ok=True)

    @property
    def selective(self) -> bool:
        """Whether some events may be left out or refused."""
        return self.manifest.admission != Admission()

    @property
    def snapshot_due(self) -> bool:
        """Whether many segments have been written since the index was saved."""
        return len(self.manifest.segments) - self.manifest.snapshot_segments >= SNAPSHOT_EVERY
