"""The segmented view of histories: the same segments that segmented attention sees, as arrays to look at or to export.

Two histories of 5 and 2 events, width 2. Segments are anchored at the newest event, so that the oldest may be short::

    events (packed, T = 7)     [ a b c d e | f g ]
    off_R1                     [ 0           5    7 ]      events of each request
    seg_off_R1                 [ 0           3    4 ]      segments of each request, oldest first
    event_off_G1               [ 0  1    3    5    7 ]     events of each segment: [a] [b c] [d e] [f g]
    padded item                [[0 a] [b c] [d e] [f g]]   a short segment is padded at its old end
    mask_GW                    [[0 1] [1 1] [1 1] [1 1]]

Legend of shape suffixes: R requests (pairs of user and time); T events, packed; G segments, packed; W segment width;
K values of a multi-valued feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from laser.data.columns import check_ids
from laser.data.prepared import PreparedData
from laser.schema import Kind


@dataclass(frozen=True)
class SegmentedHistories:
    """Histories of R requests, packed, with their segments.

    Args:
        values: per field T values, [T] or [T, K], oldest event first: the event's fields and the item's side info.
        off_R1: int64 [R + 1], where each request's events begin.
        seg_off_R1: int64 [R + 1], where each request's segments begin; a request without events has none.
        event_off_G1: int64 [G + 1], where each segment's events begin.
        width: events per segment; only the oldest segment of a request may have fewer.
    """

    values: dict[str, np.ndarray]
    off_R1: np.ndarray
    seg_off_R1: np.ndarray
    event_off_G1: np.ndarray
    width: int

    @property
    def mask_GW(self) -> np.ndarray:
        """Bool [G, W]: where the padded form holds an event."""
        return np.arange(self.width) >= self.width - np.diff(self.event_off_G1)[:, None]

    def padded(self, name: str) -> np.ndarray:
        """One field as [G, W] or [G, W, K]; 0 where ``mask_GW`` is false.

        Raises:
            ValueError: when there is no such field.
        """
        if name not in self.values:
            raise ValueError(f"no field {name!r} in the histories; they have {', '.join(self.values)}")
        packed_T = self.values[name]
        filled_GW = np.zeros((len(self.event_off_G1) - 1, self.width, *packed_T.shape[1:]), packed_T.dtype)
        filled_GW[self.mask_GW] = packed_T
        return filled_GW

    def of(self, request: int) -> list[dict[str, np.ndarray]]:
        """Segments of one request, oldest first, each with its events' fields."""
        first, last = self.seg_off_R1[request], self.seg_off_R1[request + 1]
        bounds = self.event_off_G1[first : last + 1].tolist()
        return [{n: v[a:b] for n, v in self.values.items()} for a, b in pairwise(bounds)]


def segmented_histories(
    data: PreparedData,
    users: np.ndarray | Sequence[int],
    before: np.ndarray | Sequence[int],
    *,
    width: int,
    max_history: int | None = None,
) -> SegmentedHistories:
    """Read the histories of (user, time) pairs from the store and cut them into segments.

    Args:
        data: the prepared data set.
        users: R user codes; an unknown user has no events.
        before: R times in the schema's ticks; only strictly earlier events are read.
        width: events per segment.
        max_history: newest events kept per request. Default: all.

    Raises:
        ValueError: when ``width`` is below 1, the two arrays differ in length, or a stored id is not allowed.
    """
    user_R, time_R = np.asarray(users, np.int64), np.asarray(before, np.int64)
    if width < 1:
        raise ValueError(f"segment width is {width}; expected at least 1")
    if user_R.shape != time_R.shape or user_R.ndim != 1:
        raise ValueError(f"users have shape {user_R.shape} and times {time_R.shape}; expected one time per user")
    events = data.vault.read(user_R, before=time_R, last_n=max_history)
    schema = data.schema
    for feature in schema.of_kind(Kind.ITEM, Kind.EVENT_SIDE):
        check_ids(events[feature.name], feature, str(data.path / "vault"))
    item_T = events[schema.item.name].astype(np.int64, copy=False)
    values = {feature.name: events[feature.name] for feature in schema.event}
    values |= {name: side.take(item_T, axis=0) for name, side in data.items.items()}
    seg_off_R1, event_off_G1 = segment_offsets(events.offsets, width)
    return SegmentedHistories(values, events.offsets.astype(np.int64, copy=False), seg_off_R1, event_off_G1, width)


def segment_offsets(off_R1: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut packed histories into segments that end at each history's newest event.

    Returns:
        ``seg_off_R1`` and ``event_off_G1``, both int64.
    """
    length_R = np.diff(off_R1)
    seg_off_R1 = np.concatenate([[0], np.cumsum(-(-length_R // width))]).astype(np.int64)
    request_G = np.repeat(np.arange(len(length_R)), np.diff(seg_off_R1))
    to_newest_G = seg_off_R1[1:][request_G] - 1 - np.arange(len(request_G))
    end_G = off_R1[1:][request_G] - to_newest_G * width
    return seg_off_R1, np.concatenate([[0], end_G]).astype(np.int64)
