"""Reads of users whose recent events arrived out of order: all of their events are sorted by time, then cut.

Such a user costs a full read until the next checkpoint, which stores the history in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from laser.seqvault.index import Index
from laser.seqvault.layout import Field, Layout
from laser.seqvault.planning import FOREVER
from laser.seqvault.ragged import Ragged
from laser.seqvault.reading import SegmentFiles, execute, make_plan
from laser.seqvault.tail import Tail, find_tail

History = dict[str, np.ndarray]


def read_mixed(
    index: Index, files: SegmentFiles, tail: Tail, users: np.ndarray, codes: bool
) -> Callable[[Layout, Sequence[Field], np.ndarray | None, np.ndarray], list[History]]:
    """Take what is needed under the vault's lock; the function returned does the rest without it."""
    plan, _ = make_plan(index, files, None, users, None, np.full(len(users), FOREVER), codes=codes)
    arrays = tail.coded(files.ids) if codes else tail.events
    recent = [_tail_events(tail, arrays, user) for user in users]

    def finish(layout: Layout, fields: Sequence[Field], before: np.ndarray | None, wanted: np.ndarray) -> list[History]:
        time = layout.names[0]
        stored = execute(plan, layout, layout.fields)
        histories = []
        for request, events in enumerate(recent):
            old = stored.of(request)
            merged = {name: np.concatenate([old[name], values]) for name, values in events.items()}
            order = np.argsort(merged[time], kind="stable")
            if before is not None:
                order = order[merged[time][order] < before[request]]
            order = order[max(0, len(order) - wanted[request]) :]
            histories.append({field.name: merged[field.name][order] for field in fields})
        return histories

    return finish


def _tail_events(tail: Tail, arrays: History, user: np.uint64) -> History:
    positions = []
    event = int(tail.slots[find_tail(tail.slots, user)]["head"])
    while event >= 0:
        positions.append(event)
        event = int(tail.previous[event])
    return {name: values[positions[::-1]] for name, values in arrays.items()}


def splice(found: Ragged, at: np.ndarray, histories: list[History]) -> Ragged:
    """``found`` with the (empty) histories at ``at`` replaced."""
    lengths = found.lengths.copy()
    lengths[at] = [len(next(iter(history.values()))) for history in histories]
    edges = found.offsets[at]
    fields = {}
    for name, values in found.fields.items():
        parts = np.split(values, edges)
        mixed = [part for pair in zip(parts, [history[name] for history in histories]) for part in pair]
        fields[name] = np.concatenate([*mixed, parts[-1]])
    return Ragged(fields, np.concatenate([[0], np.cumsum(lengths)]))
