"""Samples + their histories + item side info -> ``Batch``.

Legend of shape suffixes: B samples; U distinct histories; T history events, packed; K values of a multi-valued feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from laser.batch import Batch
from laser.data.columns import check_ids
from laser.data.distinct import distinct_ids
from laser.data.prepared import PreparedData
from laser.data.samples import Samples
from laser.schema import Kind, Schema, names
from laser.seqvault.jit import kernel
from laser.seqvault.ragged import Ragged


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
        """One batch.

        Args:
            samples: B samples; their targets, labels and context.
            row_B: their numbers within the split.
            step: position of the batch in the run.
            global_size: samples of this step over all processes.

        Raises:
            ValueError: when a stored event has an id that the schema does not allow.
        """
        user_B = samples.user_N.astype(np.int64)
        user_U, time_U, history_of_B = distinct_requests(user_B, samples.timestamp_N)
        requests = Requests(user_U, time_U, history_of_B, self._read(user_U, time_U))
        return assemble(self.data.schema, self.data.items, samples, requests, row_B, step=step, global_size=global_size)

    def _read(self, user_U: np.ndarray, time_U: np.ndarray) -> Ragged:
        events = self.data.vault.read(user_U, before=time_U, last_n=self.max_history)
        for feature in self.data.schema.of_kind(Kind.ITEM, Kind.EVENT_SIDE):
            check_ids(events[feature.name], feature, str(self.data.path / "vault"))
        return events


@dataclass(frozen=True)
class Requests:
    """The distinct pairs of user and time of some samples, with their histories.

    Args:
        user_U: int64 keys in the store.
        time_U: int64 ticks; all events are earlier.
        history_of_B: int64, the pair of each sample.
        events: of each pair.
    """

    user_U: np.ndarray
    time_U: np.ndarray
    history_of_B: np.ndarray
    events: Ragged


def assemble(
    schema: Schema,
    items: dict[str, np.ndarray],
    samples: Samples,
    requests: Requests,
    row_B: np.ndarray,
    *,
    step: int,
    global_size: int,
) -> Batch:
    """A batch of samples whose histories have been read.

    Args:
        schema: of the data set.
        items: side info by item code.
        samples: B samples.
        requests: their histories, with ids that the schema allows.
        row_B: numbers of the samples within the split.
        step: position of the batch in the run.
        global_size: samples of this step over all processes.
    """
    events = requests.events
    history = with_side_info(schema, items, events[schema.item.name])
    history |= {f.name: events[f.name] for f in schema.of_kind(Kind.EVENT_SIDE)}
    history = {name: history[name] for name in names(schema.history)}
    target = with_side_info(schema, items, samples.item_N)
    distinct, place = distinct_ids(schema, history, target, samples.context)
    return Batch(
        history={name: _ids(ids) for name, ids in history.items()},
        off_U1=torch.from_numpy(events.offsets.astype(np.int64, copy=False)),
        age_T=torch.from_numpy(age_seconds(schema, events, requests.time_U)),
        history_of_B=torch.from_numpy(requests.history_of_B),
        target={name: _ids(ids) for name, ids in target.items()},
        context={name: _ids(ids) for name, ids in samples.context.items()},
        label_B=torch.from_numpy(samples.label_N.astype(np.float32)),
        user_B=torch.from_numpy(samples.user_N.astype(np.int64)),
        timestamp_B=torch.from_numpy(samples.timestamp_N.astype(np.int64, copy=False)),
        row_B=torch.from_numpy(row_B.astype(np.int64)),
        history_key_U=torch.from_numpy(history_keys(requests.user_U, requests.time_U)),
        step=step,
        global_size=global_size,
        distinct={name: torch.from_numpy(ids) for name, ids in distinct.items()},
        place={name: torch.from_numpy(places) for name, places in place.items()},
    )


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
    order = np.lexsort((time_B, user_B))
    user, time = user_B[order], time_B[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    history_of_B = np.empty(len(order), dtype=np.int64)
    history_of_B[order] = np.cumsum(first) - 1
    return user[first], time[first], history_of_B


def history_keys(user_U: np.ndarray, time_U: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each (user, time), as int64: the SplitMix64 finaliser over the user, then over both."""
    return _mixed(_mixed(user_U.astype(np.uint64)) ^ time_U.astype(np.uint64)).view(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def age_seconds(schema: Schema, events: Ragged, time_U: np.ndarray) -> np.ndarray:
    """float32 seconds from each event to its sample; the difference is exact, only the result is rounded."""
    time_T = events[schema.timestamp.name].astype(np.int64, copy=False)
    age_T = np.empty(len(time_T), np.float32)
    earlier = _ages(time_T, events.offsets, time_U, float(schema.seconds_per_tick), age_T)
    assert earlier, "the store returned an event that is not older than its sample"
    return age_T


@kernel
def _ages(time_T, off_U1, time_U, seconds_per_tick, age_T):
    """Fills ``age_T``; returns whether all events are earlier."""
    earlier = True
    for history in range(len(time_U)):
        for event in range(off_U1[history], off_U1[history + 1]):
            ticks = time_U[history] - time_T[event]
            earlier = earlier and ticks > 0
            age_T[event] = np.float32(ticks * seconds_per_tick)
    return earlier


def _ids(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64, copy=False))
