"""What a read needs to know, taken under the vault's lock: chunks, tail events, open files, dictionaries.

Legend of shape suffixes: R requests (a user and a cut in time each).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from laser.seqvault import planning
from laser.seqvault.derived import RecentValues
from laser.seqvault.fetching import SegmentFiles
from laser.seqvault.filtering import Filter
from laser.seqvault.index import Index
from laser.seqvault.layout import DerivedField, Field
from laser.seqvault.planning import FOREVER
from laser.seqvault.tail import Tail


@dataclass(frozen=True)
class Plan:
    """Everything that answers a read, none of which a later write changes."""

    before: np.ndarray
    wanted: np.ndarray
    """Events wanted at most."""
    piece_off: np.ndarray
    piece_at: np.ndarray
    piece_sure: np.ndarray
    places: np.ndarray
    files: SegmentFiles
    taken: np.ndarray
    """Events taken from the tail; with a filter, those it is to examine."""
    newest: np.ndarray
    previous: np.ndarray
    recent: dict[str, Any]
    codes: bool
    """Whether to return codes in place of ids."""
    where: Filter | None
    examined: dict[str, Any]
    """Recent events as the filter sees them, with ids."""
    ids: dict[str, np.ndarray]
    """Ids by code of the fields that have a dictionary and are returned as ids or filtered by; of derived fields,
    values by code [length, C]."""

    def dtype(self, field: Field) -> np.dtype:
        """Type of a field's values in the answer."""
        return shown_as(field, self.files, self.codes)

    def without_id(self, chunk: int, field: Field) -> ValueError:
        """The error of a chunk with a code for which there is no id."""
        reason = f"a chunk has codes outside the dictionary of {field.name!r}"
        return self.files.damaged(self.places[chunk], reason)


def shown_as(field: Field, files: SegmentFiles, codes: bool) -> np.dtype:
    """Type of a field's values in answers with or without codes."""
    return np.dtype(np.int32 if codes and field.name in files.ids.by_field else field.dtype)


def make_plan(
    index: Index,
    files: SegmentFiles,
    tail: Tail | None,
    users: np.ndarray,
    before: np.ndarray | None,
    wanted: np.ndarray,
    *,
    codes: bool = False,
    where: Filter | None = None,
    fields: Sequence[Field] | None = None,
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
        where: which events to return.
        fields: that are going to be unpacked, all stored ones by default; no other dictionary is loaded.

    Returns:
        The plan, and the requests that it leaves empty because their users' recent events are out of order.
    """
    unlimited, size = before is None, len(users)
    cut = np.full(size, FOREVER) if before is None else before
    # A filter may pass over any number of events, so all are candidates.
    most = wanted if where is None else np.where(wanted > 0, FOREVER, 0)
    taken, newest = np.zeros(size, np.int64), np.full(size, -1, np.int64)
    previous = np.empty(0, np.int32)
    recent, examined = dict[str, Any](), dict[str, Any]()
    mixed = np.empty(0, np.int64)
    if tail is not None and tail.size:
        previous, examined = tail.previous, tail.events
        recent = tail.coded(files.ids) if codes else tail.events
        planning.take_tail(users, cut, unlimited, most, tail.slots, tail.times, previous, taken, newest)
        mixed = np.flatnonzero(taken < 0)
        taken[mixed] = 0
    rest = most - taken
    rest[mixed] = 0
    piece_off, piece_place, piece_sure = _choose(index, users, cut, unlimited, rest)
    piece_at, places = _distinct(piece_place)
    ids = {name: files.ids.by_field[name].ids for name in _shown_as_ids(files.ids.by_field, codes, where, fields)}
    for field in dict.fromkeys([*(fields or ()), *(where.fields if where else ())]):
        if isinstance(field, DerivedField):
            ids[field.name], values = _derived(files, field, tail)
            recent, examined = {**recent, field.name: values}, {**examined, field.name: values}
    return (
        Plan(
            cut, wanted, piece_off, piece_at, piece_sure, places, files,
            taken, newest, previous, recent, codes, where, examined, ids,
        ),
        mixed,
    )  # fmt: skip


def _shown_as_ids(
    known: Collection[str], codes: bool, where: Filter | None, fields: Sequence[Field] | None
) -> set[str]:
    """Fields with a dictionary of which the ids themselves are needed."""
    asked = {field.name for field in where.fields} if where else set()
    if not codes:
        asked |= set(known) if fields is None else {field.name for field in fields}
    return {name for name in asked if name in known}


def _derived(files: SegmentFiles, field: DerivedField, tail: Tail | None) -> tuple[np.ndarray, RecentValues]:
    """A derived field's values by code, and those of events in memory."""
    codes = np.empty(0, np.int32)
    if tail is not None and tail.size:
        codes = tail.coded(files.ids)[field.key]  # first, for it gives new ids their codes
    values = files.tables.by_field[field.name].values(files.ids.by_field[field.key])
    return values, RecentValues(values, codes, field)


def _distinct(piece_place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each piece the number of its chunk, and the places of the chunks."""
    piece_at, places = np.empty(len(piece_place), np.int32), np.empty(len(piece_place), np.uint64)
    if not len(places):
        return piece_at, places
    table = np.full(1 << max(4, (2 * len(piece_place)).bit_length()), -1, np.int32)
    return piece_at, places[: planning.distinct_chunks(piece_place, table, piece_at, places)]


def _choose(
    index: Index, users: np.ndarray, cut: np.ndarray, unlimited: bool, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not wanted.any():  # recent events suffice
        return np.zeros(len(users) + 1, np.int64), np.empty(0, np.uint64), np.empty(0, np.bool_)
    room = 2 * len(users) + 64
    while True:
        piece_off = np.empty(len(users) + 1, np.int64)
        place, sure = np.empty(room, np.uint64), np.empty(room, np.bool_)
        found = planning.choose_chunks(
            users, cut, unlimited, wanted, index.table, index.rows, index.chunks, piece_off, place, sure
        )
        if found >= 0:
            return piece_off, place[:found], sure[:found]
        room *= 4
