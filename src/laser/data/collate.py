"""Samples + their histories + item side info -> ``Batch``.

Legend of shape suffixes: B samples; U distinct histories; T history events, packed; N events in memory; K values of a
multi-valued feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from laser.batch import Batch
from laser.data.columns import check_ids
from laser.data.distinct import DistinctItems
from laser.data.histories import Slices
from laser.data.lookups import INT32, INT64, Lookups, Source, event_sources, item_sources
from laser.data.packed import Form, Memory, Packed, plain_memory
from laser.data.prepared import PreparedData
from laser.data.samples import Samples
from laser.schema import Schema
from laser.seqvault.jit import kernel

FLOAT32 = np.dtype(np.float32)
NOT_OLDER = "the store returned an event that is not older than its sample"


@dataclass(frozen=True)
class Collator:
    """Turns samples into batches.

    Args:
        data: where histories and item side info come from.
        max_history: newest events kept of each history.
    """

    data: PreparedData
    max_history: int

    def __call__(self, samples: Samples, row_B: np.ndarray, *, step: int, global_size: int) -> Batch:
        """One batch; arguments and errors as of ``packed``."""
        return self.packed(samples, row_B, step=step, global_size=global_size).batch()

    def packed(
        self, samples: Samples, row_B: np.ndarray, *, step: int, global_size: int, memory: Memory = plain_memory
    ) -> Packed:
        """One batch in one buffer.

        Args:
            samples: B samples; their targets, labels and context.
            row_B: their numbers within the split.
            step: position of the batch in the run.
            global_size: samples of this step over all processes.
            memory: where the buffer comes from.

        Raises:
            ValueError: when a stored event has an id that the schema does not allow.
        """
        data = self.data
        user_U, time_U, history_of_B = distinct_requests(samples.user_N.astype(np.int64), samples.timestamp_N)
        events = data.read(user_U, time_U, self.max_history)
        requests = Requests(user_U, time_U, history_of_B, events, str(data.path / "vault"))
        return assemble(
            data.schema, data.items, samples, requests, row_B, step=step, global_size=global_size, memory=memory
        )


@dataclass(frozen=True)
class Requests:
    """The distinct pairs of user and time of some samples, with their histories.

    Args:
        user_U: int64 keys in the store.
        time_U: int64 ticks; all events are earlier.
        history_of_B: int64, the pair of each sample.
        events: of each pair.
        source: of the events, for an error message.
    """

    user_U: np.ndarray
    time_U: np.ndarray
    history_of_B: np.ndarray
    events: Slices
    source: str


def assemble(
    schema: Schema,
    items: dict[str, np.ndarray],
    samples: Samples,
    requests: Requests,
    row_B: np.ndarray,
    *,
    step: int,
    global_size: int,
    memory: Memory = plain_memory,
) -> Packed:
    """A batch of samples whose histories have been read.

    Args:
        schema: of the data set.
        items: side info by item code.
        samples: B samples.
        requests: their histories.
        row_B: numbers of the samples within the split.
        step: position of the batch in the run.
        global_size: samples of this step over all processes.
        memory: where its buffer comes from.

    Raises:
        ValueError: when an event has an id that the schema does not allow.
    """
    events = requests.events
    chosen = DistinctItems(events, schema.item.name, schema.item.cardinality or 0)
    if not chosen.sound:
        check_ids(events.packed(schema.item.name), schema.item, requests.source)
    sources = {
        "items": item_sources(schema, items, chosen.item_I),
        "history": event_sources(schema, events),
        "target": item_sources(schema, items, samples.item_N),
        "context": [Source(feature, samples.context[feature.name]) for feature in schema.context],
    }
    others = {
        "off_U1": events.off_U1,
        "history_of_B": requests.history_of_B,
        "user_B": samples.user_N,
        "timestamp_B": samples.timestamp_N,
        "row_B": row_B,
    }
    lookups = Lookups(schema, sources)
    on_host = (events.off_U1, requests.history_of_B)
    packed = Packed(_forms(lookups, others, requests), lookups.most_bytes, memory, on_host, step, global_size)
    arrays = packed.arrays()
    earlier = _fill_others(
        requests.user_U, requests.time_U, arrays["history_key_U", None], events[schema.timestamp.name], events.begin_U,
        events.off_U1, float(schema.seconds_per_tick), arrays["age_T", None], samples.label_N, arrays["label_B", None],
    )  # fmt: skip
    assert earlier, NOT_OLDER
    bad = lookups.fill(packed, arrays, others, chosen)
    if bad is not None:
        check_ids(bad.checked, bad.feature, requests.source)
    return packed


def _forms(lookups: Lookups, others: dict[str, np.ndarray], requests: Requests) -> list[Form]:
    """Of all tensors of a batch but the distinct ids."""
    samples, events = len(requests.history_of_B), int(requests.events.off_U1[-1])
    forms = [
        Form(field, part.feature.name, part.dtype, part.shape)
        for field, parts in lookups.sources.items()
        for part in parts
    ]
    forms += [Form(name, None, INT64, (len(values),)) for name, values in others.items()]
    forms += [Form("history_key_U", None, INT64, requests.user_U.shape)]
    forms += [Form("item_of_T", None, INT32, (events,)), Form("age_T", None, FLOAT32, (events,))]
    forms += [Form("label_B", None, FLOAT32, (samples,))]
    return forms + [Form("place", table, INT32, (count,)) for table, count in lookups.counts.items()]


def with_side_info(schema: Schema, items: dict[str, np.ndarray], item: np.ndarray) -> dict[str, np.ndarray]:
    """Item codes and what is known about these items, per field of ``schema.target``."""
    # take is five times faster than side[item] where an item has several values, and with indices of its own type.
    row = item.astype(np.intp, copy=False)
    return {schema.item.name: item} | {name: side.take(row, axis=0) for name, side in items.items()}


def distinct_requests(user_B: np.ndarray, time_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct pairs of user and time, and where each sample's pair went.

    Returns:
        ``user_U``, ``time_U``, sorted by user, then time, and ``history_of_B``, all int64.
    """
    user_U, time_U, history_of_B = _distinct_pairs(np.ascontiguousarray(user_B), np.ascontiguousarray(time_B))
    return user_U, time_U, history_of_B


@kernel
def _distinct_pairs(user_B, time_B):
    order = np.argsort(time_B, kind="mergesort")
    order = order[np.argsort(user_B[order], kind="mergesort")]
    user_U, time_U = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    history_of_B, found = np.empty(len(order), np.int64), 0
    for sample in order:
        user, time = user_B[sample], time_B[sample]
        if found == 0 or user_U[found - 1] != user or time_U[found - 1] != time:
            user_U[found], time_U[found] = user, time
            found += 1
        history_of_B[sample] = found - 1
    return user_U[:found].copy(), time_U[:found].copy(), history_of_B


def history_keys(user_U: np.ndarray, time_U: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each (user, time), as int64: the SplitMix64 finaliser over the user, then over both."""
    key_U = np.empty(len(user_U), np.int64)
    _hashed(user_U, time_U, key_U)
    return key_U


@kernel
def _fill_others(user_U, time_U, key_U, time_N, begin_U, off_U1, seconds_per_tick, age_T, label_N, label_B):
    """Keys, ages and labels, in one call; returns as ``_ages``."""
    _hashed(user_U, time_U, key_U)
    for sample in range(len(label_B)):
        label_B[sample] = label_N[sample]
    return _ages(time_N, begin_U, off_U1, time_U, seconds_per_tick, age_T)


@kernel
def _hashed(user_U, time_U, key_U):
    for history in range(len(user_U)):
        key_U[history] = np.int64(_mixed(_mixed(np.uint64(user_U[history])) ^ np.uint64(time_U[history])))


@kernel
def _mixed(x):
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def age_seconds(schema: Schema, events: Slices, time_U: np.ndarray) -> np.ndarray:
    """float32 seconds from each event to its sample; the difference is exact, only the result is rounded."""
    age_T = np.empty(events.off_U1[-1], np.float32)
    seconds = float(schema.seconds_per_tick)
    assert _ages(events[schema.timestamp.name], events.begin_U, events.off_U1, time_U, seconds, age_T), NOT_OLDER
    return age_T


@kernel
def _ages(time_N, begin_U, off_U1, time_U, seconds_per_tick, age_T):
    """Fills ``age_T``; returns whether all events are earlier."""
    lowest = np.int64(1)
    for history in range(len(time_U)):
        first, stop = off_U1[history], off_U1[history + 1]
        time, from_N = time_U[history], time_N[begin_U[history] : begin_U[history] + stop - first]
        age = age_T[first:stop]
        for event in range(len(age)):
            ticks = time - from_N[event]
            lowest = min(lowest, ticks)
            age[event] = np.float32(ticks * seconds_per_tick)
    return lowest > 0
