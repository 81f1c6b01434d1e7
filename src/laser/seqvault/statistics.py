"""Figures about a vault."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from laser.seqvault.catalog import Catalog
from laser.seqvault.index import NO_PLACE, find_row, next_older, words_of
from laser.seqvault.jit import kernel
from laser.seqvault.marks import mark_count
from laser.seqvault.tail import Tail


def statistics(catalog: Catalog, tail: Tail, folder: Path) -> dict[str, int | float]:
    """Counts, bytes on disk and in memory, and amplifications.

    ``space_amplification`` is bytes in segments over bytes of chunks still in use; ``write_amplification`` is bytes of
    segments written since opening over those still in use. ``hot_bytes`` are each user's newest chunk, ``cold_bytes``
    the older ones, both without dead chunks; extents are chunks. ``memory_bytes`` are index, recent events,
    dictionaries (whole, when first asked for) and tables of derived fields; the cache has figures of its own.
    ``users`` and ``events`` are without the ``marks`` of a follower, all other counts with them.
    """
    index = catalog.index
    live = int(index.live.sum()) * 8
    segments = sum(entry.bytes for entry in catalog.manifest.segments)
    recent, marks = int(tail.slots["count"].sum()), mark_count(index, tail)
    users, ids = len(index.users), catalog.files.ids
    dictionary_bytes = sum(entry.bytes for entry in catalog.manifest.dictionaries)
    stored = int(index.used[2])
    tables = catalog.files.tables
    newest, older, chunks, most = _tiers(index.rows, int(index.used[0]), index.chunks)
    return {
        "users": users + int(_new_users(tail.slots, index.table, index.rows)) - (marks > 0),
        "events": stored + recent - marks,
        "marks": marks,
        "events_in_segments": stored,
        "events_in_memory": recent,
        "segments": len(catalog.manifest.segments),
        "segment_bytes": segments,
        "live_bytes": live,
        "live_share": live / segments if segments else 1.0,
        "hot_bytes": newest * 8,
        "cold_bytes": older * 8,
        "chunks": chunks,
        "extents_per_user": chunks / users if users else 0.0,
        "most_extents": most,
        "log_bytes": _total_bytes(folder, "*.wal"),
        "tail_bytes": tail.nbytes,
        "dictionaries": len(ids.by_field),
        "ids": sum(dictionary.count for dictionary in ids.by_field.values()),
        "dictionary_bytes": dictionary_bytes,
        "dictionary_memory_bytes": ids.nbytes,
        "derived_fields": len(tables.by_field),
        "table_bytes": _total_bytes(folder, "*.tab"),
        "table_memory_bytes": tables.nbytes,
        "bytes_per_event": (live + dictionary_bytes) / stored if stored else 0.0,
        "space_amplification": segments / live if live else 1.0,
        "write_amplification": catalog.written / live if live else 0.0,
        "index_bytes": index.nbytes,
        "index_bytes_per_user": index.nbytes / users if users else 0.0,
        "memory_bytes": index.nbytes + tail.nbytes + ids.nbytes + tables.nbytes,
        "generation": catalog.manifest.generation,
    }


@kernel
def _new_users(slots: np.ndarray, table: np.ndarray, rows: np.ndarray) -> int:
    """Users of the tail that no segment has."""
    count = 0
    for slot in range(len(slots)):
        if slots[slot].count > 0:
            row = find_row(table, rows, slots[slot].user)
            count += row < 0 or rows[row].place == NO_PLACE
    return count


@kernel
def _tiers(rows: np.ndarray, num_rows: int, chunks: np.ndarray) -> Any:
    """Words of users' newest chunks, words of older ones, chunks, and the most that one user has."""
    newest, older, total, most = 0, 0, 0, 0
    for row in range(num_rows):
        place, record, extents = rows[row].place, rows[row].older, 0
        while place != NO_PLACE:
            if extents == 0:
                newest += words_of(place)
            else:
                older += words_of(place)
            extents += 1
            place, _, record = next_older(chunks, record)
        total += extents
        most = max(most, extents)
    return newest, older, total, most


def _total_bytes(folder: Path, pattern: str) -> int:
    """Bytes of all files of a kind; one may be removed meanwhile."""
    total = 0
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
