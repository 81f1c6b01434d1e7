"""Figures about a vault."""

from __future__ import annotations

from pathlib import Path

from laser.seqvault.catalog import Catalog
from laser.seqvault.index import find_row
from laser.seqvault.tail import Tail


def statistics(catalog: Catalog, tail: Tail, folder: Path) -> dict[str, int | float]:
    """Counts, bytes on disk and in memory, and amplifications.

    ``space_amplification`` is bytes in segments over bytes of chunks still in use; ``write_amplification`` is bytes of
    segments written since opening over those still in use.
    """
    index = catalog.index
    live = int(index.live.sum()) * 8
    segments = sum(entry.bytes for entry in catalog.manifest.segments)
    recent = int(tail.slots["count"].sum())
    users, ids = len(index.users), catalog.files.ids
    dictionary_bytes = sum(entry.bytes for entry in catalog.manifest.dictionaries)
    stored = int(index.used[3])
    return {
        "users": users + _new_users(catalog, tail),
        "events": stored + recent,
        "events_in_segments": stored,
        "events_in_memory": recent,
        "segments": len(catalog.manifest.segments),
        "segment_bytes": segments,
        "live_bytes": live,
        "log_bytes": sum(path.stat().st_size for path in folder.glob("*.wal")),
        "dictionaries": len(ids.by_field),
        "ids": sum(dictionary.count for dictionary in ids.by_field.values()),
        "dictionary_bytes": dictionary_bytes,
        "bytes_per_event": (live + dictionary_bytes) / stored if stored else 0.0,
        "space_amplification": segments / live if live else 1.0,
        "write_amplification": catalog.written / live if live else 0.0,
        "index_bytes": index.nbytes,
        "index_bytes_per_user": index.nbytes / users if users else 0.0,
        "memory_bytes": index.nbytes + tail.nbytes + ids.nbytes,
        "generation": catalog.manifest.generation,
    }


def _new_users(catalog: Catalog, tail: Tail) -> int:
    index, count = catalog.index, 0
    for user in tail.slots["user"][tail.slots["count"] > 0]:
        row = find_row(index.table, index.rows, user)
        count += row < 0 or index.rows[row]["head"] < 0
    return int(count)
