"""A schema with every kind of column, and a model store to compare with: a dictionary of lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import Field, Ragged, SeqVault

FIELDS = (
    Field("time", "int64"),
    Field("item", "uint64"),
    Field("category", "uint16"),
    Field("delta", "int32"),
    Field("weight", "float32"),
    Field("tags", "int16", 3),
)
Events = dict[str, np.ndarray]


def make_events(rng: np.random.Generator, size: int, low: int = 0, high: int = 10**6) -> Events:
    return {
        "time": rng.integers(low, high, size),
        "item": rng.integers(0, 2**64, size, dtype=np.uint64),
        "category": rng.integers(0, 9, size).astype(np.uint16),
        "delta": rng.integers(-500, 500, size).astype(np.int32),
        "weight": rng.normal(size=size).astype(np.float32),
        "tags": rng.integers(-9, 9, (size, 3)).astype(np.int16),
    }


class Model:
    """What a vault must return, kept the simplest way."""

    def __init__(self) -> None:
        self.histories: dict[int, list[dict]] = {}

    def append(self, users: np.ndarray, events: Events) -> None:
        for index, user in enumerate(np.asarray(users, np.uint64).tolist()):
            self.histories.setdefault(user, []).append({name: values[index] for name, values in events.items()})

    def read(self, user: int, before: int | None = None, last_n: int | None = None) -> list[dict]:
        history = sorted(self.histories.get(int(user), []), key=lambda event: event["time"])
        if before is not None:
            history = [event for event in history if event["time"] < before]
        return history if last_n is None else history[max(0, len(history) - last_n) :]

    def compare(self, vault: SeqVault, users: np.ndarray, before: object = None, last_n: int | None = None) -> None:
        found = vault.read(users, before=before, last_n=last_n)
        assert len(found) == len(users)
        cuts = [None] * len(users) if before is None else np.broadcast_to(before, len(users)).tolist()
        for index, user in enumerate(np.asarray(users, np.uint64).tolist()):
            assert_history(found, index, self.read(user, cuts[index], last_n))


def assert_history(found: Ragged, index: int, expected: list[dict]) -> None:
    assert found.lengths[index] == len(expected)
    for name, values in found.of(index).items():
        wanted = np.array([event[name] for event in expected], values.dtype).reshape(values.shape)
        np.testing.assert_array_equal(values, wanted, err_msg=name)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vault"


@pytest.fixture
def vault(path: Path) -> Iterator[SeqVault]:
    with SeqVault.create(path, FIELDS) as opened:
        yield opened
        assert opened.check() == []
