"""Each of two real processes goes on with the sizes that its own recorded step had."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import torch.distributed as dist
from torch import nn

from laser.model.fixed_batch import Room
from laser.model.recording import RecordedNetwork
from laser.ops.segments import Capacity
from laser.train.recorded_sizes import restore_sizes, stored_sizes


def room(rank: int) -> Room:
    return Room(samples=5 + rank, events=70 + rank, rows={"item": 9 + rank}, capacity=Capacity(11 + rank, 70 + rank))


def process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
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
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=process, args=(rank, str(tmp_path))) for rank in range(2)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(120)
    assert [each.exitcode for each in processes] == [0, 0]
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()
