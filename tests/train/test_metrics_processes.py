"""The same rows on one process and spread over two or three, unevenly: the same values to the last bit."""

import json
import socket
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from laser.train.gate_statistics import GateStatistics
from laser.train.metrics import CTRMetrics

ROWS = 4000
SHARES = ([0, 2900, ROWS], [0, 0, ROWS])
"""Rows of each rank: uneven, and none on the first."""
WIDTH = 10


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    logit = np.round(random.normal(size=ROWS), 2).astype(np.float32)
    label = (random.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    user = np.minimum(random.integers(0, 400, ROWS), 200)  # half of the rows are one user's, across ranges and ranks
    return torch.from_numpy(logit), torch.from_numpy(label), torch.from_numpy(user)


def gates() -> tuple[torch.Tensor, list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 70, (60,), generator=generator).tolist()
    return torch.rand(sum(lengths), 3, generator=generator), lengths


def measure(start: int, stop: int, block_rows: int) -> dict[str, float]:
    metrics = CTRMetrics(block_rows=block_rows)
    for begin in range(start, stop, 100):
        metrics.update(*(column[begin : min(begin + 100, stop)] for column in rows()))
    return metrics.compute()


def gate_facts(first: int, last: int) -> dict:
    gate_EH, lengths = gates()
    offsets = np.cumsum([0, *lengths])
    statistics = GateStatistics()
    for sample in range(first, last, 7):
        stop = min(sample + 7, last)
        off_B1 = torch.from_numpy(offsets[sample : stop + 1] - offsets[sample])
        statistics.update(gate_EH[offsets[sample] : offsets[stop]], off_B1, WIDTH)
    return statistics.compute()


def refusal(rank: int) -> str:
    metrics = CTRMetrics()
    score = float("nan") if rank == 1 else 0.0
    metrics.update(torch.tensor([score]), torch.tensor([1.0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="NaN") as caught:
        metrics.compute()
    return str(caught.value)


def rank_main(rank: int, size: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    found: dict = {"refused": refusal(rank)}
    for index, share in enumerate(SHARES):
        found[f"share {index}"] = [measure(share[rank], share[rank + 1], block) for block in (2**20, 100)]
    found["gates"] = gate_facts(*((0, 45) if rank == 0 else (45, 60)))
    found["gates of one"] = gate_facts(0, 60 if rank == 0 else 0)
    found["nothing"] = str(CTRMetrics().compute())
    Path(out, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank_main, (2, port, str(tmp_path)), nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    expected = measure(0, ROWS, 2**20)
    assert expected["samples"] == ROWS
    for index in range(len(SHARES)):
        assert found[0][f"share {index}"] == [expected, expected]
    assert found[0]["gates"] == found[0]["gates of one"] == json.loads(json.dumps(gate_facts(0, 60)))
    assert "NaN" in found[0]["refused"]
