"""Ids written by compiled code into a batch against numpy's indexing and ``np.unique``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from laser.data import distinct as module
from laser.data.collate import Requests, assemble
from laser.data.distinct import distinct_ids
from laser.data.histories import Slices
from laser.data.samples import Samples
from laser.schema import INTEGER_DTYPES, Feature, Kind, Schema
from laser.seqvault.ragged import Ragged

ITEMS = 50


def feature(name: str, kind: Kind, dtype: str, cardinality: int, table: str | None, length: int = 1) -> Feature:
    width = None if table is None else 4
    return Feature(name=name, kind=kind, dtype=dtype, cardinality=cardinality, table=table, width=width, length=length)


def schema_of(item: str, side: str, tags: str) -> Schema:
    """Tables of one field and of many, a field without a table, all kinds of fields."""
    return Schema(
        "toy",
        (
            feature("user", Kind.USER, "uint16", 300, "user"),
            feature("tags", Kind.ITEM_SIDE, side, 30, "tag", 3),
            feature("item", Kind.ITEM, item, ITEMS, "item"),
            feature("price", Kind.ITEM_SIDE, side, 9, None),
            feature("brand", Kind.ITEM_SIDE, side, 100, "brand"),
            feature("event_tags", Kind.EVENT_SIDE, tags, 30, "tag", 2),
            feature("rating", Kind.EVENT_SIDE, "uint8", 6, "rating"),
            feature("page", Kind.EVENT_SIDE, "uint32", 2**31, None),
            feature("session", Kind.EVENT_SIDE, "int64", 2**40, None),
            feature("wanted_tag", Kind.CONTEXT, "int16", 30, "tag"),
            Feature(name="label", kind=Kind.LABEL, dtype="uint8"),
            Feature(name="timestamp", kind=Kind.TIMESTAMP, dtype="int64"),
        ),
    )


class Parts:
    """What a batch is made of, at random."""

    def __init__(self, schema: Schema, events: int, samples: int) -> None:
        self.schema, rng = schema, np.random.default_rng(7)

        def ids(name: str, count: int) -> np.ndarray:
            f = schema[name]
            assert f.cardinality is not None
            shape = (count,) if f.length == 1 else (count, f.length)
            return rng.integers(0, f.cardinality, shape).astype(f.dtype)

        self.items = {f.name: ids(f.name, ITEMS) for f in schema.of_kind(Kind.ITEM_SIDE)}
        self.events = {f.name: ids(f.name, events) for f in schema.of_kind(Kind.ITEM, Kind.EVENT_SIDE)}
        self.events["timestamp"] = np.sort(rng.integers(-(10**6), 0, events))
        self.samples = Samples(
            ids("user", samples), ids("item", samples), np.zeros(samples, np.int64),
            rng.integers(0, 2, samples).astype(np.uint8), {f.name: ids(f.name, samples) for f in schema.context},
        )  # fmt: skip
        count = int(samples > 0)
        self.requests = Requests(
            np.arange(count), np.ones(count, np.int64), np.zeros(samples, np.int64),
            Slices.of(Ragged(self.events, np.array([0, events][: count + 1]))), "a store",
        )  # fmt: skip

    def batch(self) -> Any:
        rows = np.arange(len(self.samples))
        packed = assemble(self.schema, self.items, self.samples, self.requests, rows, step=1, global_size=len(rows))
        return packed.batch()

    def fields(self) -> list[dict[str, np.ndarray]]:
        """History, target and context by plain indexing."""
        joined = []
        for known in (self.events, {"item": self.samples.item_N}):
            rows = known["item"].astype(np.int64)
            joined.append(known | {name: side[rows] for name, side in self.items.items()})
        schema = self.schema
        features = (schema.history, schema.target, schema.context)
        values = (*joined, self.samples.context)
        return [{f.name: part[f.name] for f in names} for names, part in zip(features, values, strict=True)]


def assert_right(parts: Parts) -> None:
    batch, fields = parts.batch(), parts.fields()
    item_I, item_of_T = np.unique(parts.events["item"].astype(np.int64), return_inverse=True)
    assert batch.items["item"].tolist() == item_I.tolist()
    assert batch.item_of_T is not None
    assert batch.item_of_T.tolist() == item_of_T.tolist()
    for part, wanted in zip((batch.by_event().history, batch.target, batch.context), fields, strict=True):
        assert list(part) == list(wanted)
        for name, values in wanted.items():
            narrow = parts.schema[name].kind is Kind.EVENT_SIDE and name != "session"
            assert part[name].dtype == (torch.int32 if narrow else torch.int64), name
            assert np.array_equal(part[name].numpy(), values.astype(np.int64)), name
    by_item = {name: ids.numpy() for name, ids in (batch.items | batch.history).items()}
    distinct, place = distinct_ids(parts.schema, by_item, *fields[1:])
    for found, wanted in ((batch.distinct, distinct), (batch.place, place)):
        assert set(found) == set(wanted)
        for table, values in wanted.items():
            assert found[table].numpy().dtype == values.dtype
            assert np.array_equal(found[table].numpy(), values), table


@pytest.mark.parametrize("most_marks", [0, 30, module.MOST_MARKS], ids=["all sorted", "some marked", "all marked"])
@pytest.mark.parametrize(("events", "samples"), [(1000, 40), (3, 100), (0, 5), (0, 0)])
def test_equals_numpy(monkeypatch, most_marks, events, samples):
    monkeypatch.setattr(module, "MOST_MARKS", most_marks)
    assert_right(Parts(schema_of("uint16", "uint8", "int32"), events, samples))


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
def test_any_integer_type(dtype):
    assert_right(Parts(schema_of(dtype, dtype, dtype), 200, 30))


def test_histories_that_are_slices():
    """Of fields of one and of several values an event; they overlap, and some have no events."""
    parts, rng = Parts(schema_of("uint16", "uint8", "int32"), 1000, 30), np.random.default_rng(2)
    off_U1 = np.concatenate([[0], np.cumsum(rng.integers(0, 80, 25))])
    events = Slices(parts.events, np.sort(rng.integers(0, 900, 25)), off_U1)
    parts.requests = replace(parts.requests, user_U=np.arange(25), time_U=np.ones(25, np.int64), events=events)
    parts.events = {name: events.packed(name) for name in parts.events}
    assert_right(parts)


def test_arrays_that_are_not_contiguous():
    parts = Parts(schema_of("uint16", "uint8", "uint8"), 200, 30)
    for name in ("item", "event_tags", "rating"):
        parts.events[name] = np.repeat(parts.events[name], 2, axis=0)[::2]
    parts.requests = replace(parts.requests, events=Slices.of(Ragged(parts.events, parts.requests.events.off_U1)))
    assert_right(parts)


@pytest.mark.parametrize("most_marks", [0, module.MOST_MARKS])
@pytest.mark.parametrize(
    ("dtype", "name", "value", "words"),
    [
        ("uint16", "item", ITEMS, "column 'item' of a store has id 50, expected ids up to 49"),
        ("int16", "item", -1, "column 'item' of a store has the negative id -1, expected ids of 0 and above"),
        ("int64", "item", -(2**63), "column 'item' of a store has the negative id -9223372036854775808"),
        ("uint64", "item", 2**64 - 1, "column 'item' of a store has id 18446744073709551615"),
        ("uint8", "rating", 6, "column 'rating' of a store has id 6, expected ids up to 5"),
        ("int8", "event_tags", -128, "column 'event_tags' of a store has the negative id -128"),
        ("int32", "event_tags", 30, "column 'event_tags' of a store has id 30, expected ids up to 29"),
    ],
)
def test_an_id_out_of_range_is_refused(monkeypatch, most_marks, dtype, name, value, words):
    monkeypatch.setattr(module, "MOST_MARKS", most_marks)
    parts = Parts(schema_of(dtype, "uint8", dtype), 100, 10)
    parts.events[name].reshape(-1)[-1] = value
    with pytest.raises(ValueError, match=words):
        parts.batch()


def test_marks_take_no_more_room_than_distinct_ids_can(monkeypatch):
    """Few rows or few ids: what is reserved is enough, and the buffer ends where the last tensor does."""
    parts = Parts(schema_of("uint16", "uint8", "uint8"), 100, 10)
    rows = np.arange(10)
    packed = assemble(parts.schema, parts.items, parts.samples, parts.requests, rows, step=0, global_size=10)
    assert len(packed.flat) == packed.first[-1] <= packed._whole.nbytes
