"""Ways to sort the events of samples into groups: by recency, match with the target, action, activity of the user.

Legend of shape suffixes: B samples; E events of samples, packed; I items; K values of a multi-valued feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from laser.analysis.gate_file import GatedSamples
from laser.data.prepared import PreparedData
from laser.report.plots import bucket_names
from laser.schema import Kind

RANKS = (0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
ACTIVITY = (0, 50, 100, 200, 500, 1000, 2000, 5000)
HOUR, DAY = 3600, 86400
AGES = (
    (0, "under 1 hour"), (HOUR, "under 1 day"), (DAY, "under 1 week"), (7 * DAY, "under 30 days"),
    (30 * DAY, "under 1 year"), (365 * DAY, "1 year or more"),
)  # fmt: skip
MOST_ACTIONS = 12
"""Values of an action that get a group of their own; a field with more is no action but an id."""


@dataclass(frozen=True)
class Grouping:
    """Groups of events.

    Args:
        title: what the groups are of, for axes and tables.
        names: of the groups, in the order in which they are shown.
        group: the group of each event, int [E].
    """

    title: str
    names: tuple[str, ...]
    group: Callable[[GatedSamples], np.ndarray]


def by_recency(edges: Sequence[int] = RANKS) -> Grouping:
    """By the number of newer events of the same sample; ``edges`` are the first ranks of the groups."""
    return Grouping(
        "newer events in the history", _ranges(edges), lambda s: np.searchsorted(edges, s.rank_E, side="right") - 1
    )


def by_age() -> Grouping:
    """By the time from event to sample."""
    first = [seconds for seconds, _ in AGES]
    names = tuple(name for _, name in AGES)
    return Grouping("time before the sample", names, lambda s: np.searchsorted(first, s.age_E, side="right") - 1)


def by_activity(edges: Sequence[int] = ACTIVITY) -> Grouping:
    """By the number of events that the user had before the sample, also those that the model did not see."""
    return Grouping(
        "earlier events of the user",
        _ranges(edges),
        lambda s: (np.searchsorted(edges, s.columns["earlier_events"], side="right") - 1)[s.sample_E],
    )


def by_match(data: PreparedData, feature: str) -> Grouping:
    """By what an event's item has in common with the target: a value of ``feature``, the item itself, or neither.

    Raises:
        ValueError: when ``feature`` is not known of items.
    """
    sides = [f.name for f in data.schema.of_kind(Kind.ITEM_SIDE)]
    if feature not in sides:
        raise ValueError(f"no {feature!r} among the side info of items; there is {', '.join(sides) or 'none'}")
    side_IK, item = data.items[feature].reshape(len(data.items[feature]), -1), data.schema.item.name

    known_I = np.asarray(side_IK.any(axis=1))

    def group(samples: GatedSamples) -> np.ndarray:
        target_E, event_E = samples.columns["item"][samples.sample_E], samples.events[item]
        shared_E = np.zeros(len(event_E), bool)
        for values_I in side_IK.T:
            value_E = values_I[event_E]
            for others_I in side_IK.T:
                shared_E |= (value_E != 0) & (value_E == others_I[target_E])
        known_E = known_I[event_E] & known_I[target_E]
        found_E = np.where(known_E, shared_E.astype(np.int64), 2)
        return np.where((event_E == target_E) & (event_E != 0), 3, found_E)

    names = (f"no {feature} in common", f"shares {feature}", f"{feature} unknown", f"same {item}")
    return Grouping(f"{item} of the event and target", names, group)


def by_action(data: PreparedData, field: str) -> Grouping:
    """By a field that is stored with events, such as a rating or the kind of action.

    Raises:
        ValueError: when there is no such field, it has several values an event, or more than a dozen different ones.
    """
    fields = [f for f in data.schema.of_kind(Kind.EVENT_SIDE) if f.length == 1 and f.cardinality]
    chosen = [f for f in fields if f.name == field]
    if not chosen:
        known = ", ".join(f.name for f in fields) or "none"
        raise ValueError(f"no field {field!r} with one value an event; there is {known}")
    count = chosen[0].cardinality or 0
    if count > MOST_ACTIONS + 1:
        raise ValueError(f"field {field!r} has {count} values, more than {MOST_ACTIONS} groups; choose another field")
    return Grouping(field, raw_names(data, field, count), lambda s: s.events[field].astype(np.int64))


def raw_names(data: PreparedData, field: str, count: int) -> tuple[str, ...]:
    """Raw values of the codes 0 to ``count - 1`` of a field; ``#code`` where no dictionary tells them."""
    found = {0: "unknown"}
    if (file := data.path / "ids" / f"{field}.parquet").is_file():
        table = pq.read_table(file)
        found |= {code: str(raw) for raw, code in zip(table["raw"].to_pylist(), table["code"].to_pylist())}
    return tuple(found.get(code, f"#{code}") for code in range(count))


def _ranges(edges: Sequence[int]) -> tuple[str, ...]:
    return (*bucket_names(edges[:-1], edges[1:]), f"≥ {edges[-1]}")
