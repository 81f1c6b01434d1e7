"""Answering a read by its plan, without a lock: fetch, cut and unpack.

Legend of shape suffixes: R requests (a user and a cut in time each); P pieces (a chunk as one request uses it);
Q distinct chunks; T events of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from laser.seqvault import pieces, planning
from laser.seqvault.cache import ChunkCache, Rows
from laser.seqvault.fetching import fetch_chunks
from laser.seqvault.filtering import Filter, Matches, match_stops
from laser.seqvault.held import Held
from laser.seqvault.layout import DerivedField, Field, Layout
from laser.seqvault.plan import Plan
from laser.seqvault.ragged import Ragged
from laser.seqvault.unpacking import COLUMN, column_of, unpack_columns

ROUND = 1
"""Chunks of a request that a filtered read examines at first; each further round takes twice as many."""


class Answer:
    """What a plan finds: lengths are known, values are ready to be unpacked to where they are wanted.

    Args:
        plan: what to read; needs no lock any more.
        layout: fields of an event.
        fields: that are wanted.
        cache: of decoded chunks, and how it holds these; reads that filter, or want derived fields, do without it.

    Raises:
        ValueError: when a chunk is damaged; names file and offset.
        OSError: when a file cannot be read.
    """

    def __init__(
        self, plan: Plan, layout: Layout, fields: Sequence[Field], cache: tuple[ChunkCache, Rows] | None = None
    ) -> None:
        self.plan, self.layout, self.fields = plan, layout, fields
        self._held: Held | None = None
        requests, count, chunks = len(plan.wanted), len(plan.piece_at), len(plan.places)
        self._chunk_off, self._by_chunk = np.zeros(chunks + 1, np.int64), np.empty(count, np.int64)
        self._owner = np.empty(count, np.int64)
        if count:
            pieces.group_pieces(plan.piece_off, plan.piece_at, self._chunk_off, self._by_chunk, self._owner)
        self._start, self._stop, self._cut = np.zeros((3, count), np.int64)
        self._matches = Matches.none(chunks)
        self._recent_off, self._source = self._find_recent()
        recent = self._recent_off[1:] - self._recent_off[:-1]
        self._stored = np.zeros(requests, np.int64)
        if count:
            self._find_stored(plan.wanted - recent, cache)
        self.lengths = self._stored + recent
        """Events of each request, int64 [R]."""
        self._replaced: dict[int, dict[str, np.ndarray]] = {}

    def replace(self, requests: np.ndarray, histories: Sequence[dict[str, np.ndarray]]) -> None:
        """Fill requests that the plan left empty with histories found otherwise, of at least one field each."""
        for request, history in zip(requests.tolist(), histories):
            self._replaced[request] = history
            self.lengths[request] = len(next(iter(history.values())))

    def _find_recent(self) -> tuple[np.ndarray, np.ndarray]:
        """Tail events of each request, oldest first: offsets [R + 1], and positions in the tail."""
        plan = self.plan
        if not len(plan.previous):  # nothing is recent
            return np.zeros(len(plan.taken) + 1, np.int64), np.empty(0, np.int64)
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

    def _find_stored(self, wanted: np.ndarray, cache: tuple[ChunkCache, Rows] | None) -> None:
        plan = self.plan
        if plan.where is not None:
            self._walk(plan.where, wanted)
            return
        if cache is None:
            self._arena, self._offsets = self._fetch(plan.places)
            self._find_stops(self._arena, self._offsets, self._stop)
        else:
            self._held = Held(*cache, plan, self.layout)
            self._held.find_stops(self._chunk_off, self._by_chunk, self._owner, self._stop)
        pieces.choose_starts(wanted, plan.piece_off, self._start, self._stop, self._stored)

    def _fetch(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The columns of chunks that this answer needs: from the first to the last that is wanted or looked at."""
        plan, layout = self.plan, self.layout
        looked_at = [*self.fields, *(plan.where.fields if plan.where else ())]
        ends = [
            layout.first_column[field.name] + (1 if isinstance(field, DerivedField) else field.length)
            for field in looked_at
        ]
        last = max(ends, default=0)
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
        ids |= {field.name: ids[field.name][0] for field in where.fields if isinstance(field, DerivedField)}
        bad = self._matches.find(where, self.layout, ids, new, plan.places, arena, fresh)
        if bad >= 0:
            raise plan.files.damaged(plan.places[bad], "a chunk has codes outside a dictionary")
        self._find_stops(arena, fresh, self._cut)
        self._offsets[new] = offsets + len(self._arena)
        self._arena = np.concatenate([self._arena, arena])

    def ragged(self) -> Ragged:
        """The answer packed, in the order of the requests."""
        offsets = _offsets(self.lengths)
        values = {f.name: np.empty((int(offsets[-1]), *f.shape), self.plan.dtype(f)) for f in self.fields}
        self.write(values, offsets[:-1])
        return Ragged(values, offsets)

    def write(self, out: Mapping[str, np.ndarray], begin: np.ndarray) -> None:
        """Unpack all fields.

        Args:
            out: per field an array of ``plan.dtype``, contiguous; its events are its rows.
            begin: int64 [R], the event of ``out`` where a request's history begins.
        """
        dest = np.empty(len(self._start), np.int64)
        if len(dest):
            pieces.place_pieces(self.plan.piece_off, self._start, self._stop, begin, self._stored, dest)
        if self._held is not None:
            for field in self.fields:
                self._held.copy(field, self._start, self._stop, dest, out[field.name])
        elif len(dest):
            self._unpack(out, dest)
        if len(self._source):
            self._write_recent(out, begin)
        for request, history in self._replaced.items():
            rows = slice(int(begin[request]), int(begin[request] + self.lengths[request]))
            for field in self.fields:
                out[field.name].reshape(-1, *field.shape)[rows] = history[field.name]

    def _write_recent(self, out: Mapping[str, np.ndarray], begin: np.ndarray) -> None:
        recent = self._recent_off[1:] - self._recent_off[:-1]
        at = np.repeat(begin + self._stored - self._recent_off[:-1], recent) + np.arange(len(self._source))
        for field in self.fields:
            out[field.name].reshape(-1, *field.shape)[at] = self.plan.recent[field.name][self._source]

    def _unpack(self, out: Mapping[str, np.ndarray], dest: np.ndarray) -> None:
        plan, columns, fields = self.plan, list[tuple[int, ...]](), list[Field]()
        for field in self.fields:
            follows, values = isinstance(field, DerivedField), out[field.name]
            coded = follows or (not plan.codes and field.name in plan.ids)
            for component in range(field.length):
                column = self.layout.first_column[field.name] + (0 if follows else component)
                ids = (plan.ids[field.name][component] if follows else plan.ids[field.name]) if coded else None
                columns.append(column_of(column, component, field.length, values, ids))
                fields.append(field)
        failed, chunk = unpack_columns(
            np.array(columns, COLUMN), self._chunk_off, self._by_chunk, self._start, self._stop, dest,
            self._arena, self._offsets, self._matches.positions, self._matches.begin,
        )  # fmt: skip
        if failed >= 0:
            raise plan.without_id(chunk, fields[failed])


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
