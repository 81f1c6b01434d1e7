"""What tests of the loader share."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import fields
from itertools import chain

import pytest
import torch

from laser.batch import Batch
from laser.data.loader import BatchLoader
from laser.data.prepared import PreparedData

SIZE = 100
BATCHES = 17
"""1632 samples in batches of 100; the last has 32."""


@pytest.fixture
def no_threads_of_other_tests():
    """A thread at a batch keeps the loader that a test has left until the batch is done."""
    deadline = time.monotonic() + 30
    while gc.collect() >= 0 and loader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)


def loader(data: PreparedData, split: str = "train", **options) -> BatchLoader:
    return BatchLoader(data, split, **{"batch_size": SIZE, "max_history": 20, "shuffle": True, "seed": 1} | options)


def rows(batches) -> list[list[int]]:
    return [batch.row_B.tolist() for batch in batches]


def joined(batches) -> list[int]:
    return list(chain(*rows(batches)))


def assert_equal(one: Batch, other: Batch) -> None:
    for field in fields(Batch):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, dict):
            assert list(a) == list(b)
            assert all(torch.equal(a[name], b[name]) for name in a), field.name
        else:
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("laser-")]
