"""From the files that a process left, or is still writing, to the events that no segment has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from laser.seqvault import derived, dictionary, log, segment, snapshot
from laser.seqvault.manifest import Manifest

SHARDS = "shards"
"""Folder, in the vault's, of what other processes write for it; see ``shards.py``."""


class LogFollower:
    """Reads all logs of a vault from the manifest's first, and goes on where it stopped."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.layout = folder, manifest.layout
        self.number, self.expected = manifest.first_log, manifest.first_sequence
        self._reader: log.LogReader | None = None

    def catch_up(self, apply: Callable[[log.Record], None]) -> None:
        """Apply what has been written since the last call.

        Raises:
            ValueError: when a log is damaged.
        """
        while True:
            if self._reader is None:
                if not (self.folder / log.file_name(self.number)).exists():
                    self._require_last(self.number)
                    return
                self._reader = log.LogReader(self.folder, self.number, self.layout)
            # Looked for before reading: then nothing can be added to this log after we have read it.
            followed = (self.folder / log.file_name(self.number + 1)).exists()
            for record in self._reader.records(self.expected):
                apply(record)
                self.expected = record.sequence + 1
            if not followed:
                self._require_last(self.number + 1)
                return
            self._next()

    def _require_last(self, number: int) -> None:
        later = [path.name for path in self.folder.glob("*.wal") if path.name > log.file_name(number)]
        # A checkpoint removes a log only after it has replaced the manifest; unchanged, it tells of a loss.
        if later and Manifest.load(self.folder).first_log <= number:
            missing = self.folder / log.file_name(number)
            raise ValueError(f"{missing} is missing, but {min(later)} follows it; restore it from a copy")

    def _next(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None
        self.number += 1

    def close(self) -> None:
        """Close the file being read."""
        if self._reader is not None:
            self._reader.close()

    def repair(self) -> None:
        """Cut unfinished bytes off the last log, durably, and make it durable; for the writer."""
        if self._reader is None:
            return
        if not self._reader.position:
            self._reader.path.unlink()
            self._reader.close()
            self._reader = None
            return
        file = os.open(self._reader.path, os.O_RDWR)
        try:
            os.ftruncate(file, self._reader.position)
            os.fsync(file)
        finally:
            os.close(file)
        self._next()


def remove_shards(folder: Path) -> None:
    """Remove what processes wrote beside the vault for it to adopt, adopted or not; for the writer."""
    shutil.rmtree(folder / SHARDS, ignore_errors=True)


def remove_strays(folder: Path, manifest: Manifest) -> list[Path]:
    """Remove files of interrupted work that no state refers to; for the writer. Returns what was removed."""
    named = {segment.file_name(entry.number) for entry in manifest.segments}
    named.add(snapshot.file_name(manifest.snapshot))
    named |= {derived.file_name(number) for number in manifest.tables.values()}
    named |= {dictionary.file_name(manifest.layout.names.index(entry.field)) for entry in manifest.dictionaries}
    patterns = ("*.seg", "*.idx", "*.ids", "*.tab")
    strays = [path for pattern in patterns for path in folder.glob(pattern) if path.name not in named]
    strays += folder.glob("*.tmp")
    strays += [path for path in folder.glob("*.wal") if path.name < log.file_name(manifest.first_log)]
    for path in strays:
        path.unlink()
    return strays
