"""From one state of a vault to the next: on disk first, then in memory, with as little waiting for readers as can be.

Locks, in the order in which they are taken: the maintenance's by whoever rewrites segments, ``committing`` by whoever
replaces the manifest, ``appending`` by whoever writes to the log, ``lock`` by whoever touches what reads look at. Files
are written and made durable without the last one, so that reads wait for memory only.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from laser.seqvault import snapshot
from laser.seqvault.catalog import Catalog
from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.index import Index
from laser.seqvault.manifest import Manifest, SegmentEntry
from laser.seqvault.recent import Recent
from laser.seqvault.segment import file_name
from laser.seqvault.staging import Staged, Step
from laser.seqvault.tail import Frozen

if TYPE_CHECKING:
    from laser.seqvault.rewriting import Rewrite


class Committer:
    """Replaces the state of a vault that is open for writing.

    Args:
        catalog: segments and index.
        recent: what no segment has yet.
        lock: the vault's.
    """

    def __init__(self, catalog: Catalog, recent: Recent, lock: threading.RLock) -> None:
        self.catalog, self.recent, self.lock = catalog, recent, lock
        self.committing, self._appending = threading.RLock(), threading.RLock()

    def commit(
        self,
        staged: Staged,
        ids: Dictionaries,
        *,
        replacing: tuple[SegmentEntry, ...] = (),
        frozen: Frozen | None = None,
        log: tuple[int, int] | None = None,
    ) -> None:
        """Switch to the state with staged segments, on disk and then in memory; hold ``committing``.

        Args:
            staged: what ``Catalog.stage`` wrote.
            ids: dictionaries of the segments' codes.
            replacing: all present segments when the staged ones replace them, else none.
            frozen: recent events that the segments hold.
            log: number and first sequence number of the log that follows these.

        Raises:
            OSError: when it cannot be made durable.
        """
        catalog, recent = self.catalog, self.recent
        old = catalog.manifest
        step = self._saved(staged, log or (old.first_log, old.first_sequence), ids, replacing)
        with self._appending:
            index = step.applied(Index() if replacing else catalog.index.copy(), recent.forgotten)
            tail = None if frozen is None else recent.since(frozen, index, ids, self.lock)
            with self.lock:
                catalog.install(step, index)
                if tail is not None:
                    recent.replace_tail(tail)
        self._remove_replaced(old, replacing)
        recent.remove_old_logs()

    def replace_run(self, rewrite: Rewrite, staged: Staged) -> None:
        """Switch to the state in which staged chunks stand for those of the segments they were copied from."""
        with self.committing:
            self.sync()  # chunks of users whose deletion is only in the log may be missing from the copy
            catalog, old = self.catalog, self.catalog.manifest
            log, ids = (old.first_log, old.first_sequence), catalog.files.ids
            step = self._saved(staged, log, ids, tuple(rewrite.run))
            slot = step.entries[0].slot if step.entries else 0
            with self._appending:  # a deletion would change the index that is copied here
                index = rewrite.moved(catalog.index, slot)
                with self.lock:
                    catalog.install(step, index)
            self._remove_replaced(old, rewrite.run)

    def _saved(
        self, staged: Staged, log: tuple[int, int], ids: Dictionaries, replacing: Sequence[SegmentEntry]
    ) -> Step:
        try:
            return self.catalog.save(staged, log, ids, replacing=replacing, lock=self.lock)
        except BaseException as error:
            if self.catalog.in_doubt:
                self.recent.stop(error)
            raise

    def _remove_replaced(self, old: Manifest, replaced: Sequence[SegmentEntry]) -> None:
        self.catalog.remove(file_name(entry.number) for entry in replaced)
        if old.snapshot and not self.catalog.manifest.snapshot:
            self.catalog.remove([snapshot.file_name(old.snapshot)])

    def sync(self) -> None:
        """See ``SeqVault.sync``."""
        with self._appending:
            log = self.recent.log
            assert log is not None
            log.sync()

    def save_index(self, *, only_due: bool = False) -> None:
        """Save the index where that is possible; without it the next opening takes longer."""
        with self.committing:
            catalog = self.catalog
            if catalog.index_saved or (only_due and not catalog.snapshot_due):
                return
            with self._appending:
                # While a deletion is only in the log, the index is ahead of the segments and must not be saved.
                if self.recent.forgotten:
                    return
                compacted = catalog.index.compacted()
                with self.lock:
                    catalog.index = compacted.copy()
            with contextlib.suppress(OSError):
                catalog.save_index(compacted)
