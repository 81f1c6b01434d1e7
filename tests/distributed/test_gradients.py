"""Gradients and first weights of dense parameters over two real processes."""

from __future__ import annotations

import torch

from laser.train.gradients import average_gradients, same_everywhere


def process(rank: int, folder: str) -> None:
    torch.manual_seed(rank)
    layer = torch.nn.Linear(3, 2)
    same_everywhere(layer.parameters())
    first = [parameter.detach().clone() for parameter in layer.parameters()]
    layer.weight.grad = torch.full((2, 3), 1.0 + rank)
    if rank == 0:  # the other has no gradient of the bias
        layer.bias.grad = torch.full((2,), 4.0)
    average_gradients(layer.parameters())
    torch.save({"first": first, "gradients": [p.grad for p in layer.parameters()]}, f"{folder}/{rank}.pt")


def test_two_processes(two_processes):
    folder = two_processes(process)
    zero, one = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    for mine, other in zip(zero["first"], one["first"], strict=True):
        assert torch.equal(mine, other), "processes began with other weights"
    for found in (zero, one):
        weight, bias = found["gradients"]
        assert weight.tolist() == [[1.5] * 3] * 2
        assert bias.tolist() == [2.0] * 2
