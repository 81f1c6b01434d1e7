"""Segments on their way into a vault: written, then named by a manifest, then part of what is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from laser.seqvault.fetching import SegmentFiles
from laser.seqvault.index import Index
from laser.seqvault.manifest import Manifest, SegmentEntry
from laser.seqvault.segment import SegmentWriter

Block = tuple[np.ndarray, np.ndarray]
"""Packed chunks (words) and their directory entries."""


@dataclass
class Staged:
    """Segments that have been written but that no manifest names."""

    writers: list[SegmentWriter] = field(default_factory=list)
    directories: list[np.ndarray] = field(default_factory=list)

    def finish_last(self) -> None:
        """Complete the segment being written, durably."""
        if len(self.writers) > len(self.directories):
            self.directories.append(self.writers[-1].finish())

    def abandon(self) -> None:
        """Remove them."""
        for writer in self.writers:
            writer.abandon()


@dataclass(frozen=True)
class Step:
    """A state that is on disk already, and is to be that of memory."""

    manifest: Manifest
    files: SegmentFiles
    entries: tuple[SegmentEntry, ...]
    """The new segments."""
    directories: list[np.ndarray]

    def applied(self, index: Index, forgotten: Iterable[int]) -> Index:
        """``index`` with the new segments, and without users deleted since they were packed."""
        for entry, directory in zip(self.entries, self.directories):
            index.apply(directory, entry.slot)
        for user in forgotten:
            index.forget(user)
        return index
