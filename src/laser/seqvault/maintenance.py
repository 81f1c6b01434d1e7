"""Work in the background of an open vault: checkpoints, reclaiming dead chunks, keeping segments and extents few.

Each step writes new segments beside the old ones and takes the vault's lock only to switch, so reads and appends go on.

Legend of shape suffixes: U users.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from laser.seqvault.catalog import SEGMENT_BYTES
from laser.seqvault.index import NO_PLACE, Index, count_of, next_older, num_chunks_of
from laser.seqvault.jit import kernel
from laser.seqvault.manifest import SegmentEntry
from laser.seqvault.plan import make_plan
from laser.seqvault.reading import execute
from laser.seqvault.rewriting import Rewrite
from laser.seqvault.segment import HEADER_BYTES
from laser.seqvault.staging import Block
from laser.seqvault.storing import blocks, pack_sorted
from laser.seqvault.writing import Writer

LOW_WATER = 0.5
"""A segment with a smaller share of live bytes is rewritten."""
MERGED_SEGMENTS = 8
"""So many neighbours of similar size become one segment."""
MOST_EXTENTS = 3
"""A user whose newest chunk's worth of events lies in more chunks gets them packed anew."""
STEP_EVENTS = 1 << 18
"""Events packed anew in one step: what bounds how long a checkpoint waits for it."""
RETRY_SECONDS = 1.0


class _Interrupted(Exception):
    """The step at hand is given up, for the vault closes or is compacted as a whole."""


class Maintenance:
    """A thread that does what is due whenever it is woken.

    Args:
        writer: of the vault.
        rate: bytes that may be copied per second; ``None`` for no limit.
        low_water: share of live bytes below which a segment is rewritten, 0 ... 0.9.
    """

    def __init__(self, writer: Writer, rate: float | None, low_water: float) -> None:
        self._writer, self._rate, self._low_water = writer, rate, low_water
        self._rewriting = threading.Lock()
        self._work, self._ended = threading.Event(), threading.Event()
        self._waiting = 0
        self._avoided: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="seqvault-maintenance", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look for work."""
        if not self._work.is_set():
            self._work.set()

    def stop(self) -> None:
        """End, and give up the step at hand."""
        self._ended.set()
        self._work.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Give up the step at hand, and begin none meanwhile."""
        self._waiting += 1
        try:
            with self._rewriting:
                yield
        finally:
            self._waiting -= 1

    def _run(self) -> None:
        while not self._ended.is_set():
            self._work.wait()
            self._work.clear()
            try:
                self._checkpoint_if_due()
                while not self._ended.is_set() and self.step():
                    pass
            except OSError:
                # Nothing is lost. An append whose memory is full meets the reason itself, and names it.
                self._ended.wait(RETRY_SECONDS)
            except _Interrupted:
                self._work.set()

    def _checkpoint_if_due(self) -> None:
        if self._writer.over_budget and not self._ended.is_set():
            try:
                self._writer.checkpoint()
            except ValueError:
                self._ended.wait(RETRY_SECONDS)  # as above

    def step(self) -> bool:
        """Do one thing that is due; whether there was one.

        Raises:
            OSError: when there is no room for it; everything stays as it was.
        """
        with self._rewriting:
            run = self._due(self._writer.catalog.manifest.segments)
            if not run:
                return self._pack_crowded()
            try:
                self._rewrite(run)
            except ValueError as error:
                self._avoided |= {entry.number for entry in run}
                warnings.warn(f"a segment is not maintained any more: {error}", stacklevel=2)
            return True

    def _due(self, segments: Sequence[SegmentEntry]) -> Sequence[SegmentEntry]:
        """Adjacent segments to rewrite now."""
        live = self._writer.catalog.index.live
        known = [(entry, int(live[entry.slot]) * 8) for entry in segments]
        for entry, used in known:
            size = entry.bytes - HEADER_BYTES
            if used < self._low_water * size and entry.number not in self._avoided:
                return [entry]
        gathered, at = 0, len(known)
        while at > 0:
            entry, used = known[at - 1]
            small = gathered + used <= SEGMENT_BYTES // 2 and used <= max(4 * gathered, 1 << 20)
            if entry.number in self._avoided or (not small and at < len(known)):
                break
            gathered, at = gathered + used, at - 1
        run = segments[at:]
        return run if len(run) >= MERGED_SEGMENTS else []

    def _rewrite(self, run: Sequence[SegmentEntry]) -> None:
        catalog = self._writer.catalog
        with self._writer.lock:
            index, files, first = catalog.index, catalog.files, catalog.manifest.segments[0] == run[0]
        opened = [files.segments[entry.slot] for entry in run]
        rewrite = Rewrite(run, opened, index, first, self._breathe)
        self._writer.replace_run(rewrite, catalog.stage(rewrite.blocks()))
        self._writer.save_index(only_due=True)

    def _breathe(self, copied: int) -> None:
        """Keep to the rate, and let a checkpoint that is due come first."""
        end = time.monotonic() + (copied / self._rate if self._rate else 0.0)
        while True:
            if self._waiting or self._ended.is_set():
                raise _Interrupted
            self._checkpoint_if_due()
            rest = end - time.monotonic()
            if rest <= 0:
                return
            self._ended.wait(min(rest, 0.05))

    def _pack_crowded(self) -> bool:
        """Pack the newest events of users anew who have these in many small chunks; whether there were any."""
        writer = self._writer
        with writer.committing:
            catalog = writer.catalog
            layout, index, files = catalog.manifest.layout, catalog.index, catalog.files
            users, keep, merged = crowded(index, layout.chunk_events)
            few = np.searchsorted(np.cumsum(merged), STEP_EVENTS) + 1
            users, keep, merged = users[:few], keep[:few], merged[:few]
            if not len(users):
                return False

            def packed() -> Iterator[Block]:
                for begin, end in blocks(merged):
                    part = slice(begin, end)
                    plan, _ = make_plan(index, files, None, users[part], None, merged[part], codes=True)
                    found = execute(plan, layout, layout.fields)
                    columns = layout.columns(found.fields, np.arange(int(found.offsets[-1])))
                    # A deletion since then is found again when the segment is in place.
                    left = found.lengths > 0
                    if left.any():
                        yield pack_sorted(layout, users[part][left], keep[part][left], found.lengths[left], columns)

            before = catalog.written
            writer.commit(catalog.stage(packed()), files.ids)
        self._breathe(catalog.written - before)
        return True


def crowded(index: Index, full: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users whose newest ``full`` events lie in more than ``MOST_EXTENTS`` chunks.

    Returns:
        Users uint64 [U]; int64 [U] how many of their oldest chunks are left alone; int64 [U] events of the others.
    """
    room = int(index.used[0])
    users, keep, merged = np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64)
    found = _crowded(index.rows, room, index.chunks, full, users, keep, merged)
    return users[:found], keep[:found], merged[:found]


@kernel
def _crowded(
    rows: np.ndarray,
    num_rows: int,
    chunks: np.ndarray,
    full: int,
    users: np.ndarray,
    keep: np.ndarray,
    merged: np.ndarray,
) -> int:
    found = 0
    for row in range(num_rows):
        place, record, events, extents = rows[row].place, rows[row].older, 0, 0
        while place != NO_PLACE and events < full:
            count = count_of(place)
            if count >= full:
                break
            events += count
            extents += 1
            place, _, record = next_older(chunks, record)
        if extents > MOST_EXTENTS:
            users[found] = rows[row].user
            merged[found] = events
            keep[found] = num_chunks_of(rows, row, chunks) - extents
            found += 1
    return found
