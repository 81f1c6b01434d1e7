"""Answering a read: plan under the vault's lock, then fetch, cut and unpack without it.

Legend of shape suffixes: R requests (a user and a cut in time each); P pieces (a chunk as one request uses it);
Q distinct chunks; T events of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from laser.seqvault import pieces, planning
from laser.seqvault.fetching import SegmentFiles, fetch_chunks
from laser.seqvault.filtering import Filter, Matches, match_stops
from laser.seqvault.index import Index
from laser.seqvault.layout import Field, Layout
from laser.seqvault.planning import FOREVER
from laser.seqvault.ragged import Ragged
from laser.seqvault.tail import Tail

ROUND = 2
"""Chunks of a request that a filtered read examines at first; each further round takes twice as many."""


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
    recent: dict[str, np.ndarray]
    codes: bool
    """Whether to return codes in place of ids."""
    where: Filter | None
    examined: dict[str, np.ndarray]
    """Recent events as the filter sees them, with ids."""
    ids: dict[str, np.ndarray]
    """Ids by code of the fields that have a dictionary and are returned as ids or filtered by."""


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

    Returns:
        The plan, and the requests that it leaves empty because their users' recent events are out of order.
    """
    unlimited, size = before is None, len(users)
    cut = np.full(size, FOREVER) if before is None else before
    # A filter may pass over any number of events, so all are candidates.
    most = wanted if where is None else np.where(wanted > 0, FOREVER, 0)
    taken, newest = np.zeros(size, np.int64), np.full(size, -1, np.int64)
    previous, recent, examined = np.empty(0, np.int32), {}, {}
    mixed = np.empty(0, np.int64)
    if tail is not None and tail.size:
        previous, examined = tail.previous, tail.events
        recent = tail.coded(files.ids) if codes else tail.events
        planning.take_tail(users, cut, unlimited, most, tail.slots, tail.times, previous, taken, newest)
        mixed = np.flatnonzero(taken < 0)
        taken[mixed] = 0
    rest = most - taken
    rest[mixed] = 0
    piece_off, piece_chunk, piece_sure = _choose(index, users, cut, unlimited, rest)
    piece_at, places = np.empty(len(piece_chunk), np.int32), np.empty(len(piece_chunk), np.uint64)
    table = np.full(1 << max(4, (2 * len(piece_chunk)).bit_length()), -1, np.int32)
    places = places[: planning.distinct_chunks(piece_chunk, index.chunks, table, piece_at, places)]
    asked = {field.name for field in where.fields} if where else set()
    ids = {name: known.ids for name, known in files.ids.by_field.items() if not codes or name in asked}
    return (
        Plan(
            cut, wanted, piece_off, piece_at, piece_sure, places, files,
            taken, newest, previous, recent, codes, where, examined, ids,
        ),
        mixed,
    )  # fmt: skip


def _choose(
    index: Index, users: np.ndarray, cut: np.ndarray, unlimited: bool, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    room = 2 * len(users) + 64
    while True:
        piece_off = np.empty(len(users) + 1, np.int64)
        chunk, sure = np.empty(room, np.int32), np.empty(room, np.bool_)
        found = planning.choose_chunks(
            users, cut, unlimited, wanted, index.table, index.rows, index.chunks, piece_off, chunk, sure
        )
        if found >= 0:
            return piece_off, chunk[:found], sure[:found]
        room *= 4


class Answer:
    """What a plan finds: lengths are known, values are ready to be unpacked to where they are wanted.

    Args:
        plan: what to read; needs no lock any more.
        layout: fields of an event.
        fields: that are wanted.

    Raises:
        ValueError: when a chunk is damaged; names file and offset.
        OSError: when a file cannot be read.
    """

    def __init__(self, plan: Plan, layout: Layout, fields: Sequence[Field]) -> None:
        self.plan, self.layout, self.fields = plan, layout, fields
        requests, count, chunks = len(plan.wanted), len(plan.piece_at), len(plan.places)
        self._chunk_off, self._by_chunk = np.zeros(chunks + 1, np.int64), np.empty(count, np.int64)
        self._owner = np.empty(count, np.int64)
        pieces.group_pieces(plan.piece_off, plan.piece_at, self._chunk_off, self._by_chunk, self._owner)
        self._start, self._stop, self._cut = (np.zeros(count, np.int64) for _ in range(3))
        self._matches = Matches.none(chunks)
        self._recent_off, self._source = self._find_recent()
        recent = np.diff(self._recent_off)
        self._stored = np.zeros(requests, np.int64)
        self._find_stored(plan.wanted - recent)
        self.lengths = self._stored + recent
        """Events of each request, int64 [R]."""
        self._replaced: dict[int, dict[str, np.ndarray]] = {}

    def replace(self, requests: np.ndarray, histories: Sequence[dict[str, np.ndarray]]) -> None:
        """Fill requests that the plan left empty with histories found otherwise."""
        for request, history in zip(requests.tolist(), histories):
            self._replaced[request] = history
            self.lengths[request] = len(next(iter(history.values())))

    def _find_recent(self) -> tuple[np.ndarray, np.ndarray]:
        """Tail events of each request, oldest first: offsets [R + 1], and positions in the tail."""
        plan = self.plan
        offsets = _offsets(plan.taken)
        source = np.empty(int(offsets[-1]), np.int64)
        planning.walk_tail(plan.taken, plan.newest, plan.previous, offsets, source)
        if plan.where is None or not len(source):
            return offsets, source
        kept = plan.where.keep({field.name: plan.examined[field.name][source] for field in plan.where.fields})
        ranks = np.concatenate([[0], np.cumsum(kept)])
        newer = np.repeat(ranks[offsets[1:]], plan.taken) - ranks[:-1]  # matches of the request from this event on
        kept &= newer <= np.repeat(plan.wanted, plan.taken)
        counts = np.concatenate([[0], np.cumsum(kept)])
        return counts[offsets], source[kept]

    def _find_stored(self, wanted: np.ndarray) -> None:
        plan = self.plan
        if plan.where is not None:
            self._walk(plan.where, wanted)
            return
        self._arena, self._offsets = self._fetch(plan.places)
        self._find_stops(self._arena, self._offsets, self._stop)
        pieces.choose_starts(wanted, plan.piece_off, self._start, self._stop, self._stored)

    def _fetch(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The columns of chunks that this answer needs: from the first to the last that is wanted or looked at."""
        plan, layout = self.plan, self.layout
        looked_at = [*self.fields, *(plan.where.fields if plan.where else ())]
        last = max((layout.first_column[field.name] + field.length for field in looked_at), default=0)
        return fetch_chunks(places, plan.files, layout.num_columns, max(last, 0 if plan.piece_sure.all() else 1))

    def _find_stops(self, arena: np.ndarray, offsets: np.ndarray, stops: np.ndarray) -> None:
        plan = self.plan
        pieces.find_stops(
            plan.before, self._chunk_off, self._by_chunk, self._owner, plan.piece_sure, plan.places,
            arena, offsets, stops,
        )  # fmt: skip

    def _walk(self, where: Filter, wanted: np.ndarray) -> None:
        """Examine chunks from the newest until every request has what it wants."""
        plan = self.plan
        self._arena, self._offsets = np.empty(0, np.uint64), np.full(len(plan.places), -1, np.int64)
        begin, taking = plan.piece_off[:-1].copy(), ROUND
        while len(active := np.flatnonzero((self._stored < wanted) & (begin < plan.piece_off[1:]))):
            end = np.minimum(begin[active] + taking, plan.piece_off[active + 1])
            lengths = end - begin[active]
            now = np.repeat(begin[active] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
            self._examine(where, np.unique(plan.piece_at[now]))
            matches = self._matches
            match_stops(
                now, plan.piece_at, self._cut, matches.begin, matches.count, matches.positions, self._stop
            )  # fmt: skip
            begin[active] = end
            taking *= 2
            pieces.choose_starts(wanted, plan.piece_off, self._start, self._stop, self._stored)

    def _examine(self, where: Filter, chunks: np.ndarray) -> None:
        """Fetch those of the chunks not seen before, and find their matches and their events before the cuts."""
        plan = self.plan
        new = chunks[self._offsets[chunks] < 0]
        arena, offsets = self._fetch(plan.places[new])
        fresh = np.full(len(plan.places), -1, np.int64)
        fresh[new] = offsets
        ids = {field.name: plan.ids[field.name] for field in where.fields if field.name in plan.ids}
        bad = self._matches.find(where, self.layout, ids, new, plan.places, arena, fresh)
        if bad >= 0:
            raise plan.files.damaged(plan.places[bad], "a chunk has codes outside a dictionary")
        self._find_stops(arena, fresh, self._cut)
        self._offsets[new] = offsets + len(self._arena)
        self._arena = np.concatenate([self._arena, arena])

    def dtype(self, field: Field) -> np.dtype:
        """Type of a field's values in this answer."""
        coded = self.plan.codes and field.name in self.plan.files.ids.by_field
        return np.dtype(np.int32 if coded else field.dtype)

    def ragged(self) -> Ragged:
        """The answer packed, in the order of the requests."""
        offsets = _offsets(self.lengths)
        values = {f.name: np.empty((int(offsets[-1]), *f.shape), self.dtype(f)) for f in self.fields}
        self.write(values, offsets[:-1])
        return Ragged(values, offsets)

    def write(self, out: Mapping[str, np.ndarray], begin: np.ndarray) -> None:
        """Unpack all fields.

        Args:
            out: per field an array of ``dtype``, contiguous; its events are its rows.
            begin: int64 [R], the event of ``out`` where a request's history begins.
        """
        dest = np.empty(len(self._start), np.int64)
        pieces.place_pieces(self.plan.piece_off, self._start, self._stop, begin + self._stored, dest)
        recent = np.diff(self._recent_off)
        at = np.repeat(begin + self._stored - self._recent_off[:-1], recent) + np.arange(len(self._source))
        for field in self.fields:
            values = out[field.name]
            self._unpack(field, values, dest)
            if len(at):
                values.reshape(-1, *field.shape)[at] = self.plan.recent[field.name][self._source]
            for request, history in self._replaced.items():
                rows = slice(int(begin[request]), int(begin[request] + self.lengths[request]))
                values.reshape(-1, *field.shape)[rows] = history[field.name]

    def _unpack(self, field: Field, values: np.ndarray, dest: np.ndarray) -> None:
        plan, flat = self.plan, values.reshape(-1).view(f"u{values.itemsize}")
        coded = not plan.codes and field.name in plan.ids
        ids = plan.ids[field.name] if coded else flat[:0]
        for component in range(field.length):
            column = self.layout.first_column[field.name] + component
            bad = pieces.unpack_pieces(
                self._chunk_off, self._by_chunk, self._start, self._stop, dest, self._arena, self._offsets,
                self._matches.positions, self._matches.begin, column, component, field.length, flat, coded, ids,
            )  # fmt: skip
            if bad >= 0:
                reason = f"a chunk has codes outside the dictionary of {field.name!r}"
                raise plan.files.damaged(plan.places[bad], reason)


def execute(plan: Plan, layout: Layout, fields: Sequence[Field]) -> Ragged:
    """Fetch, check and unpack; needs no lock.

    Raises:
        ValueError: when a chunk is damaged; names file and offset.
        OSError: when a file cannot be read.
    """
    return Answer(plan, layout, fields).ragged()


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
