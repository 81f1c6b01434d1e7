"""Schemas and batches for the model's tests.

Legend of shape suffixes: B samples; U distinct histories; T history events, packed; I distinct items of them; K values
of a multi-valued feature.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from laser.batch import Batch
from laser.data.distinct import distinct_ids
from laser.schema import Feature, Kind, Schema

AWKWARD_LENGTHS = [0, 1, 9, 10, 11, 63, 0, 40]
AWKWARD_SAMPLES = [0, 1, 2, 3, 4, 5, 5, 2, 6, 7]
"""Users without history, one event, w - 1, w, w + 1 events (w = 10); histories shared, and out of order."""


def schema_of(
    *, side: bool = True, context: bool = True, embedded_user: bool = True, embedded_item: bool = True
) -> Schema:
    features = [
        Feature(
            name="user",
            kind=Kind.USER,
            dtype="int64",
            cardinality=20,
            table="user" if embedded_user else None,
            width=8 if embedded_user else None,
        ),
        Feature(
            name="item",
            kind=Kind.ITEM,
            dtype="int64",
            cardinality=50,
            table="item" if embedded_item else None,
            width=16 if embedded_item else None,
        ),
        Feature(name="label", kind=Kind.LABEL, dtype="uint8"),
        Feature(name="timestamp", kind=Kind.TIMESTAMP, dtype="int64"),
    ]
    if side:
        features += [
            Feature(name="genre", kind=Kind.ITEM_SIDE, dtype="int64", cardinality=9, table="genre", width=8, length=3),
            Feature(name="action", kind=Kind.EVENT_SIDE, dtype="int64", cardinality=6, table="action", width=8),
            Feature(name="seen", kind=Kind.EVENT_SIDE, dtype="float32"),
        ]
    if context:
        features.append(
            Feature(name="shelf", kind=Kind.CONTEXT, dtype="int64", cardinality=9, table="genre", width=8, length=2)
        )
    return Schema("test", tuple(features))


def random_batch(schema: Schema, lengths: list[int], samples: list[int], *, seed: int = 0, step: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def ids(feature: Feature, rows: int) -> torch.Tensor:
        shape = (rows,) if feature.length == 1 else (rows, feature.length)
        return torch.randint(0, feature.cardinality or 2, shape, generator=generator)

    U, T, B = len(lengths), sum(lengths), len(samples)
    return Batch(
        history={f.name: ids(f, T) for f in schema.history if f.table},
        off_U1=torch.tensor([0, *lengths]).cumsum(0),
        age_T=torch.rand(T, generator=generator).mul(18).exp2() * 60,
        history_of_B=torch.tensor(samples, dtype=torch.int64),
        target={f.name: ids(f, B) for f in schema.target if f.table},
        context={f.name: ids(f, B) for f in schema.context},
        label_B=torch.randint(0, 2, (B,), generator=generator).float(),
        user_B=torch.arange(B),
        timestamp_B=torch.arange(B) + 1000,
        row_B=torch.randperm(1000, generator=generator)[:B],
        history_key_U=torch.randint(-(2**62), 2**62, (U,), generator=generator),
        step=step,
        global_size=B,
    )


def loaded(schema: Schema, batch: Batch) -> Batch:
    """A batch in the loader's form: some of its items by item, so that other events have them, and its distinct ids."""
    events = len(batch.age_T)
    items = -(-events // 3)
    by_item = {f.name: batch.history[f.name][:items] for f in schema.target if f.table}
    of_events = {name: ids for name, ids in batch.history.items() if name not in by_item}
    groups = (by_item | of_events, batch.target, batch.context)
    distinct, place = distinct_ids(schema, *({name: ids.numpy() for name, ids in group.items()} for group in groups))
    return replace(
        batch,
        items=by_item,
        item_of_T=(7 * torch.arange(events) % max(1, items)).int(),
        history=of_events,
        distinct={name: torch.from_numpy(ids) for name, ids in distinct.items()},
        place={name: torch.from_numpy(ids) for name, ids in place.items()},
    )


def choose(batch: Batch, rows: list[int]) -> Batch:
    """The given samples of a batch with a copy of the history for each, as another process would hold them."""
    histories = batch.history_of_B[rows].tolist()
    off = batch.off_U1.tolist()
    events = [event for h in histories for event in range(off[h], off[h + 1])]
    return Batch(
        history={name: values[events] for name, values in batch.history.items()},
        off_U1=torch.tensor([0] + [off[h + 1] - off[h] for h in histories]).cumsum(0),
        age_T=batch.age_T[events],
        history_of_B=torch.arange(len(rows)),
        target={name: values[rows] for name, values in batch.target.items()},
        context={name: values[rows] for name, values in batch.context.items()},
        label_B=batch.label_B[rows],
        user_B=batch.user_B[rows],
        timestamp_B=batch.timestamp_B[rows],
        row_B=batch.row_B[rows],
        history_key_U=batch.history_key_U[histories],
        step=batch.step,
        global_size=batch.global_size,
    )


@pytest.fixture(scope="session")
def make_schema() -> Callable[..., Schema]:
    return schema_of


@pytest.fixture(scope="session")
def schema() -> Schema:
    return schema_of()


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    return random_batch


@pytest.fixture
def as_loaded(schema: Schema) -> Callable[[Batch], Batch]:
    """``as_loaded(batch)``, whose history differs from that of ``batch``."""
    return partial(loaded, schema)


@pytest.fixture
def take() -> Callable[[Batch, list[int]], Batch]:
    return choose


@pytest.fixture
def batch(schema: Schema) -> Batch:
    """Awkward lengths, shared histories."""
    return random_batch(schema, AWKWARD_LENGTHS, AWKWARD_SAMPLES)


@pytest.fixture(scope="session")
def reference() -> Callable[[torch.nn.Module, Batch], torch.Tensor]:
    """``reference(model, batch) -> float64 logits``, see reference.py."""
    # importlib mode puts tests/ on no path, so the module beside this file is loaded by its place.
    spec = importlib.util.spec_from_file_location("laser_reference", Path(__file__).with_name("reference.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference


@pytest.fixture
def scatter() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """Gives every parameter random values, so that biases and norms (0 and 1 at the start) cannot hide an error."""

    def randomise(model: torch.nn.Module, seed: int = 5) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        return model

    return randomise
