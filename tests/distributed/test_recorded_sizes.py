"""Each of two real processes goes on with the sizes that its own recorded step had."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from laser.model.fixed_batch import Room
from laser.model.recording import RecordedNetwork
from laser.ops.segments import Capacity
from laser.train.recorded_sizes import restore_sizes, stored_sizes


def room(rank: int) -> Room:
    return Room(samples=5 + rank, events=70 + rank, rows={"item": 9 + rank}, capacity=Capacity(11 + rank, 70 + rank))


def process(rank: int, folder: str) -> None:
    saved, resumed, smaller = (RecordedNetwork(nn.Linear(1, 1), []) for _ in range(3))
    saved.room = room(rank)
    sizes = stored_sizes(saved)
    restore_sizes(resumed, sizes)
    restore_sizes(smaller, sizes[:1])  # a checkpoint of another number of processes
    restore_sizes(None, sizes)
    assert resumed.room == room(rank)
    assert smaller.room == Room()
    assert stored_sizes(None) == [None, None]
    Path(folder, f"{rank}.json").write_text(json.dumps(sizes))


def test_two_processes(two_processes):
    folder = two_processes(process)
    assert (folder / "0.json").read_text() == (folder / "1.json").read_text()
