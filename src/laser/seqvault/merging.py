"""Reads of users whose recent events arrived out of order: all of their events are sorted by time, then cut.

Such a user costs a full read until the next checkpoint, which stores the history in order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from laser.seqvault.cache import ChunkCache, Rows
from laser.seqvault.fetching import SegmentFiles
from laser.seqvault.index import Index
from laser.seqvault.layout import DerivedField, Layout
from laser.seqvault.plan import Plan, make_plan, shown_as
from laser.seqvault.planning import FOREVER
from laser.seqvault.ragged import Ragged
from laser.seqvault.reading import Answer, execute
from laser.seqvault.requesting import Request
from laser.seqvault.tail import Tail, find_tail

History = dict[str, np.ndarray]


def prepare(
    index: Index, files: SegmentFiles, tail: Tail, layout: Layout, request: Request, cache: ChunkCache | None
) -> Callable[[], Answer]:
    """Take what a request needs under the vault's lock; the function returned does the rest without it."""
    cached = _cached(cache, files, request)
    plan, mixed = make_plan(
        index, files, tail, request.users, request.before, request.wanted,
        codes=request.codes, where=request.where, fields=cached[1].fields if cached else request.fields,
    )  # fmt: skip
    if not len(mixed):
        return lambda: Answer(plan, layout, request.fields, cached)
    users = request.users[mixed]
    filtered = request.where.fields if request.where else ()
    every = tuple(dict.fromkeys([*layout.fields, *request.fields, *filtered]))
    stored, _ = make_plan(
        index, files, None, users, None, np.full(len(users), FOREVER), codes=request.codes, fields=every
    )
    recent = [_positions(tail, user) for user in users]

    def finish() -> Answer:
        answer = Answer(plan, layout, request.fields, cached)
        answer.replace(mixed, _sorted(plan, execute(stored, layout, every), recent, request, mixed))
        return answer

    return finish


def _cached(cache: ChunkCache | None, files: SegmentFiles, request: Request) -> tuple[ChunkCache, Rows] | None:
    derived = any(isinstance(field, DerivedField) for field in request.fields)
    if cache is None or request.where is not None or derived:
        return None
    return cache, cache.serving(request.codes, {f: shown_as(f, files, request.codes) for f in request.fields})


def _positions(tail: Tail, user: np.uint64) -> np.ndarray:
    """The user's events in the tail, in order of arrival."""
    positions = []
    event = int(tail.slots[find_tail(tail.slots, user)]["head"])
    while event >= 0:
        positions.append(event)
        event = int(tail.previous[event])
    return np.array(positions[::-1], np.int64)


def _sorted(plan: Plan, found: Ragged, recent: list[np.ndarray], request: Request, mixed: np.ndarray) -> list[History]:
    time, histories = next(iter(found.fields)), []
    names = dict.fromkeys([time, *(field.name for field in request.fields)])  # times tell how many there are
    for index, (at, positions) in enumerate(zip(mixed, recent)):
        old = found.of(index)
        merged = {name: np.concatenate([old[name], plan.recent[name][positions]]) for name in found.fields}
        order = np.argsort(merged[time], kind="stable")
        if request.before is not None:
            order = order[merged[time][order] < request.before[at]]
        if request.where is not None:
            seen = dict(merged)
            for field in request.where.fields:
                if request.codes and field.name in plan.ids and not isinstance(field, DerivedField):
                    seen[field.name] = plan.ids[field.name].view(field.dtype)[merged[field.name]]
            order = order[request.where.keep({f.name: seen[f.name][order] for f in request.where.fields})]
        order = order[max(0, len(order) - request.wanted[at]) :]
        histories.append({name: merged[name][order] for name in names})
    return histories
