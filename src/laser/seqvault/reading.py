"""Answering a read: plan under the vault's lock, then fetch and unpack without it.

Legend of shape suffixes: R requests (a user and a cut in time each).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laser.seqvault import planning
from laser.seqvault.dictionary import Dictionaries
from laser.seqvault.index import Index, offset_of, slot_of
from laser.seqvault.layout import Field, Layout
from laser.seqvault.planning import FOREVER
from laser.seqvault.ragged import Ragged
from laser.seqvault.segment import Segment
from laser.seqvault.tail import Tail

SPARE_WORDS = 2
"""Unpacking may look this far past an area."""


class SegmentFiles:
    """Open segments by slot, their file numbers as the kernels want them, and the dictionaries of their codes."""

    def __init__(self, segments: dict[int, Segment], ids: Dictionaries) -> None:
        self.segments, self.ids = segments, ids
        self.numbers = np.full(max(segments, default=0) + 1, -1, np.int32)
        for slot, segment in segments.items():
            self.numbers[slot] = segment.file


@dataclass(frozen=True)
class Plan:
    """Everything that answers a read, none of which a later write changes."""

    before: np.ndarray
    wanted: np.ndarray
    """Events still wanted from segments."""
    piece_off: np.ndarray
    piece_at: np.ndarray
    piece_sure: np.ndarray
    places: np.ndarray
    files: SegmentFiles
    taken: np.ndarray
    """Events taken from the tail."""
    newest: np.ndarray
    previous: np.ndarray
    recent: dict[str, np.ndarray]
    ids: dict[str, np.ndarray] | None
    """Ids by code of the fields that have a dictionary; ``None`` returns codes."""


def make_plan(
    index: Index,
    files: SegmentFiles,
    tail: Tail | None,
    users: np.ndarray,
    before: np.ndarray | None,
    wanted: np.ndarray,
    *,
    codes: bool = False,
) -> tuple[Plan, np.ndarray]:
    """Choose chunks and tail events; hold the vault's lock.

    Args:
        index: where chunks lie.
        files: open segments.
        tail: recent events; ``None`` reads segments only.
        users: uint64 [R].
        before: int64 [R], or ``None`` for no cut.
        wanted: int64 [R], events at most.
        codes: return codes in place of ids.

    Returns:
        The plan, and the requests that it leaves empty because their users' recent events are out of order.
    """
    unlimited, size = before is None, len(users)
    cut = np.full(size, FOREVER) if before is None else before
    taken, newest = np.zeros(size, np.int64), np.full(size, -1, np.int64)
    previous, recent = np.empty(0, np.int32), {}
    mixed = np.empty(0, np.int64)
    if tail is not None and tail.size:
        previous, recent = tail.previous, tail.coded(files.ids) if codes else tail.events
        planning.take_tail(users, cut, unlimited, wanted, tail.slots, tail.times, previous, taken, newest)
        mixed = np.flatnonzero(taken < 0)
        taken[mixed] = 0
    rest = wanted - taken
    rest[mixed] = 0
    piece_off, piece_chunk, piece_sure = _choose(index, users, cut, unlimited, rest)
    piece_at, places = np.empty(len(piece_chunk), np.int32), np.empty(len(piece_chunk), np.uint64)
    table = np.full(1 << max(4, (2 * len(piece_chunk)).bit_length()), -1, np.int32)
    count = planning.distinct_chunks(piece_chunk, index.chunks, table, piece_at, places)
    ids = None if codes else {name: dictionary.ids for name, dictionary in files.ids.by_field.items()}
    plan = Plan(cut, rest, piece_off, piece_at, piece_sure, places[:count], files, taken, newest, previous, recent, ids)
    return plan, mixed


def _choose(
    index: Index, users: np.ndarray, cut: np.ndarray, unlimited: bool, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    room = 2 * len(users) + 64
    while True:
        piece_off = np.empty(len(users) + 1, np.int64)
        chunk, sure = np.empty(room, np.int32), np.empty(room, np.bool_)
        pieces = planning.choose_chunks(
            users, cut, unlimited, wanted, index.table, index.rows, index.chunks, piece_off, chunk, sure
        )
        if pieces >= 0:
            return piece_off, chunk[:pieces], sure[:pieces]
        room *= 4


def execute(plan: Plan, layout: Layout, fields: Sequence[Field]) -> Ragged:
    """Fetch, check and unpack; needs no lock.

    Raises:
        ValueError: when a chunk is damaged; names file and offset.
        OSError: when a file cannot be read.
    """
    size, pieces = len(plan.before), len(plan.piece_at)
    offsets = np.empty(len(plan.places), np.int64)
    arena = np.empty(planning.arena_offsets(plan.places, offsets) + SPARE_WORDS, np.uint64)
    _fetch(plan, arena, offsets, layout.num_columns)
    start, stop = np.empty(pieces, np.int64), np.empty(pieces, np.int64)
    stored = np.zeros(size, np.int64)
    planning.cut_pieces(
        plan.before,
        plan.wanted,
        plan.piece_off,
        plan.piece_at,
        plan.piece_sure,
        plan.places,
        arena,
        offsets,
        start,
        stop,
        stored,
    )
    bounds = np.zeros(size + 1, np.int64)
    np.cumsum(stored + plan.taken, out=bounds[1:])
    stops = bounds[1:] - plan.taken
    source, dest = np.empty(int(plan.taken.sum()), np.int64), np.empty(int(plan.taken.sum()), np.int64)
    planning.walk_tail(plan.taken, plan.newest, plan.previous, bounds[1:], source, dest)
    found = {}
    for field in fields:
        coded = field.name in plan.files.ids.by_field
        values = np.empty((int(bounds[-1]), *field.shape), np.int32 if coded and plan.ids is None else field.dtype)
        flat = values.reshape(-1).view(f"u{values.itemsize}")
        for component in range(field.length):
            column = layout.first_column[field.name] + component
            place = (plan.piece_off, plan.piece_at, start, stop, stops, arena, offsets, column, component, field.length)
            if coded and plan.ids is not None:
                bad = planning.unpack_id_pieces(*place, flat, plan.ids[field.name])
                if bad >= 0:
                    raise _damaged(plan, bad, f"a chunk has codes outside the dictionary of {field.name!r}")
            else:
                planning.unpack_pieces(*place, flat)
        if len(source):
            values[dest] = plan.recent[field.name][source]
        found[field.name] = values
    return Ragged(found, bounds)


def _fetch(plan: Plan, arena: np.ndarray, offsets: np.ndarray, num_columns: int) -> None:
    short = planning.fetch(plan.places, plan.files.numbers, arena, offsets)
    bad = planning.verify(plan.places, arena, offsets, num_columns) if short < 0 else short
    if bad >= 0:
        raise _damaged(plan, bad, "it ends within a chunk" if short >= 0 else "a chunk does not match its checksum")


def _damaged(plan: Plan, chunk: int, reason: str) -> ValueError:
    place = plan.places[chunk]
    path = plan.files.segments[slot_of(place)].path
    return ValueError(f"{path} is damaged at offset {offset_of(place) * 8}: {reason}; restore the file from a copy")
