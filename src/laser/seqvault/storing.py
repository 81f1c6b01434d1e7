"""Turning events into packed chunks: group by user, merge with small or overlapping stored chunks, cut, pack.

Legend of shape suffixes: U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from laser.seqvault import planning
from laser.seqvault.bits import worst_chunk_words
from laser.seqvault.cold import chill
from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.fetching import SegmentFiles
from laser.seqvault.grouping import group_by_user, merge_by_time
from laser.seqvault.index import ENTRY, Index
from laser.seqvault.layout import Layout
from laser.seqvault.overlap import in_threads
from laser.seqvault.packing import pack_chunks
from laser.seqvault.plan import Plan, make_plan
from laser.seqvault.reading import execute

BLOCK_EVENTS = 1 << 18
"""Events packed at a time: what bounds the memory of a flush or a compaction."""
BLOCK_USERS = 512
"""Users repacked at a time."""


def pack_events(
    layout: Layout,
    index: Index,
    files: SegmentFiles,
    users: np.ndarray,
    events: dict[str, np.ndarray],
    threads: int = 1,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pack events of any order, merged with what is stored; yields (words, ``ENTRY`` records) per block of users.

    Events hold codes in the fields that have a dictionary. ``threads`` blocks are packed at a time.
    """
    times = events[layout.names[0]]
    order, distinct, bounds = group_by_user(users, times)
    coming, oldest = np.diff(bounds), times[order[bounds[:-1]]]
    keep, merged = np.empty(len(distinct), np.int64), np.empty(len(distinct), np.int64)
    planning.chunks_to_merge(
        distinct, coming, oldest, layout.chunk_events, index.table, index.rows, index.chunks, keep, merged
    )

    def pack(begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        part, own = slice(begin, end), order[bounds[begin] : bounds[end]]
        stored, _ = make_plan(index, files, None, distinct[part], None, merged[part], codes=True)
        return _pack_merged(layout, stored, distinct[part], keep[part], coming[part], events, own)

    yield from in_threads((partial(pack, begin, end) for begin, end in blocks(coming + merged)), threads)


def blocks(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut consecutive users so that a block has about ``BLOCK_EVENTS`` events, and at least one user."""
    block = np.cumsum(sizes) // BLOCK_EVENTS
    edges = np.flatnonzero(np.diff(block)) + 1
    yield from zip([0, *edges.tolist()], [*edges.tolist(), len(sizes)])


def sample(layout: Layout, index: Index, files: SegmentFiles) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Users and events of some stored histories, spread over all users."""
    users = np.sort(index.users)
    chosen = users[:: max(1, len(users) // BLOCK_USERS)][:BLOCK_USERS]
    plan, _ = make_plan(index, files, None, chosen, None, np.full(len(chosen), BLOCK_EVENTS // max(1, len(chosen))))
    histories = execute(plan, layout, layout.fields)
    return np.repeat(chosen, histories.lengths), histories.fields


def repack(
    layout: Layout, index: Index, files: SegmentFiles, ids: Dictionaries, keep_last: int, keep_since: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pack all stored histories anew, users in ascending order; yields (words, ``ENTRY`` records).

    Of each user the newest ``keep_last`` events with timestamps of at least ``keep_since`` are kept. Fields that have a
    dictionary in ``ids`` but not yet in ``files`` get their codes.
    """
    users = np.sort(index.users)
    for start in range(0, len(users), BLOCK_USERS):
        batch = users[start : start + BLOCK_USERS]
        # The number of events is known only after the read, so blocks of users are small.
        plan, _ = make_plan(index, files, None, batch, None, np.full(len(batch), keep_last), codes=True)
        histories = execute(plan, layout, layout.fields)
        owner = np.repeat(np.arange(len(batch)), histories.lengths)
        kept = np.arange(len(owner))
        if keep_since is not None:
            kept = np.flatnonzero(histories[layout.names[0]] >= keep_since)
        sizes = np.bincount(owner[kept], minlength=len(batch))
        left = sizes > 0
        if left.any():
            columns = layout.columns(ids.encode(histories.fields, files.ids.by_field), kept)
            yield pack_sorted(layout, batch[left], np.zeros(int(left.sum()), np.int64), sizes[left], columns, cold=True)


def _pack_merged(
    layout: Layout,
    stored: Plan,
    users: np.ndarray,
    keep: np.ndarray,
    coming: np.ndarray,
    events: dict[str, np.ndarray],
    own: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Pack the events at positions ``own``, by user and time, together with the stored ones they are merged with."""
    if not len(stored.piece_at):
        return pack_sorted(layout, users, keep, coming, layout.columns(events, own))
    old, time = execute(stored, layout, layout.fields), layout.names[0]
    ends = np.concatenate([[0], np.cumsum(coming)])
    chosen = {name: np.concatenate([old[name], values[own]]) for name, values in events.items()}
    order, split = np.empty(len(chosen[time]), np.int64), int(old.offsets[-1])
    merge_by_time(old.offsets, chosen[time][:split], ends, chosen[time][split:], order)
    return pack_sorted(layout, users, keep, old.lengths + coming, layout.columns(chosen, order))


def pack_sorted(
    layout: Layout, users: np.ndarray, keep: np.ndarray, sizes: np.ndarray, columns: np.ndarray, *, cold: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Pack histories, cut into chunks from the newest end.

    Args:
        layout: fields of an event.
        users: uint64 [U], distinct.
        keep: int64 [U], how many of the user's oldest stored chunks stay.
        sizes: int64 [U], events of each, none 0.
        columns: uint64 [columns, sum of sizes], users one after the other, each by time.
        cold: compress all but each user's newest chunk further, which takes some twenty times as long.

    Returns:
        Words of the chunks, and their directory with offsets from the first word.
    """
    full = layout.chunk_events
    counts = -(-sizes // full)
    owner = np.repeat(np.arange(len(users)), counts)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    lengths = np.where(nth == 0, sizes[owner] - (counts[owner] - 1) * full, full)
    cuts = np.concatenate([[0], np.cumsum(lengths)])
    words = np.zeros(len(owner) * worst_chunk_words(0, layout.num_columns) + columns.size, np.uint64)
    places = np.empty(len(owner) + 1, np.int64)
    packed = words[: pack_chunks(columns, layout.signed, users[owner], cuts, words, places)]
    if cold and len(owner) > len(users):
        packed = chill(packed, places, nth < counts[owner] - 1, layout.num_columns)
    entries = np.zeros(len(owner), ENTRY)
    times = columns[0].view(np.int64)
    entries["user"], entries["count"], entries["keep"] = users[owner], lengths, keep[owner] + nth
    entries["first"], entries["last"] = times[cuts[:-1]], times[cuts[1:] - 1]
    entries["offset"], entries["words"] = places[:-1], np.diff(places)
    return packed, entries
