"""Gradients and first weights of dense parameters over two real processes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist

from laser.train.gradients import average_gradients, same_everywhere


def process(rank: int, folder: str) -> None:
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    layer = torch.nn.Linear(3, 2)
    same_everywhere(layer.parameters())
    first = [parameter.detach().clone() for parameter in layer.parameters()]
    layer.weight.grad = torch.full((2, 3), 1.0 + rank)
    if rank == 0:  # the other has no gradient of the bias
        layer.bias.grad = torch.full((2,), 4.0)
    average_gradients(layer.parameters())
    torch.save({"first": first, "gradients": [p.grad for p in layer.parameters()]}, f"{folder}/{rank}.pt")
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
    zero, one = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for mine, other in zip(zero["first"], one["first"], strict=True):
        assert torch.equal(mine, other), "processes began with other weights"
    for found in (zero, one):
        weight, bias = found["gradients"]
        assert weight.tolist() == [[1.5] * 3] * 2
        assert bias.tolist() == [2.0] * 2
