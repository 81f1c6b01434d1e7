"""Answering a read from decoded chunks: those in the cache, and those it lacks, decoded whole and given to it.

Legend of shape suffixes: P pieces (a chunk as one request uses it); Q distinct chunks.
"""

from __future__ import annotations

import numpy as np

from laser.seqvault import rows
from laser.seqvault.cache import ChunkCache, Entry, Rows
from laser.seqvault.fetching import fetch_chunks
from laser.seqvault.layout import Field, Layout
from laser.seqvault.plan import Plan


def keys_of(plan: Plan) -> list[int]:
    """Keys of a plan's chunks: file number, offset (27 bits), and whether with codes."""
    slots = (plan.places >> np.uint64(51)).astype(np.int64)
    offsets = (plan.places >> np.uint64(24)) & np.uint64(0x7FFFFFF)
    numbers = plan.files.serials[slots]
    return ((numbers << np.uint64(28)) | (offsets << np.uint64(1)) | np.uint64(plan.codes)).tolist()


class Held:
    """The decoded chunks of a plan.

    Raises:
        ValueError: when a chunk is damaged; names file and offset.
        OSError: when a file cannot be read.
    """

    def __init__(self, cache: ChunkCache, held: Rows, plan: Plan, layout: Layout) -> None:
        self.plan, self.layout, self.rows = plan, layout, held
        keys = keys_of(plan)
        found = cache.find(keys, held)
        lacking = [chunk for chunk, entry in enumerate(found) if entry is None]
        made = self._decode(np.array(lacking, np.int64)) if lacking else []
        for chunk, entry in zip(lacking, made):
            found[chunk] = entry
        if lacking:
            cache.add([keys[chunk] for chunk in lacking], held, made)
        self._entries = [entry for entry in found if entry is not None]  # so that what is evicted stays for this read
        self._addresses = np.array([entry.address for entry in self._entries], np.int64)

    def _decode(self, chunks: np.ndarray) -> list[Entry]:
        plan, layout = self.plan, self.layout
        places = plan.places[chunks]
        columns = max(layout.first_column[field.name] + field.length for field in self.rows.fields)
        arena, offsets = fetch_chunks(places, plan.files, layout.num_columns, columns)
        width = sum(self.rows.widths)
        sizes = (places & np.uint64(0x3FF)).astype(np.int64) * width
        entries = [Entry(np.empty(size, np.uint8)) for size in sizes.tolist()]
        addresses = np.array([entry.address for entry in entries], np.int64)
        for field, dtype, begin in zip(self.rows.fields, self.rows.dtypes, self.rows.begin):
            share = np.empty(1024 * field.length, f"u{dtype.itemsize}")
            coded = not plan.codes and field.name in plan.ids
            ids = plan.ids[field.name] if coded else share[:0]
            column = layout.first_column[field.name]
            bad = rows.fill_rows(
                places, arena, offsets, addresses, begin, column, field.length, share, coded, ids
            )  # fmt: skip
            if bad >= 0:
                raise plan.without_id(int(chunks[bad]), field)
        return entries

    def find_stops(
        self, chunk_off: np.ndarray, by_chunk: np.ndarray, owner: np.ndarray, piece_stop: np.ndarray
    ) -> None:
        """As ``pieces.find_stops``."""
        plan = self.plan
        rows.find_held_stops(
            plan.before, chunk_off, by_chunk, owner, plan.piece_sure, plan.places, self._addresses, piece_stop
        )

    def copy(
        self, field: Field, piece_start: np.ndarray, piece_stop: np.ndarray, piece_dest: np.ndarray, values: np.ndarray
    ) -> None:
        """One field of all pieces to where they go in ``values``."""
        plan, at = self.plan, self.rows.fields.index(field)
        dest = values.__array_interface__["data"][0]
        begin, width = self.rows.begin[at], self.rows.widths[at]
        rows.copy_pieces(
            plan.piece_at, piece_start, piece_stop, piece_dest, plan.places, self._addresses, begin, width, dest
        )
