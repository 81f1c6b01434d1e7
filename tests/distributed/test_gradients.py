"""Gradients and first weights of dense parameters over two real processes."""

from __future__ import annotations

import pytest
import torch

from laser.model.flat import Flat
from laser.train.gradients import average_gradients, clip_norm, same_everywhere


def process(rank: int, folder: str) -> None:
    torch.manual_seed(rank)
    layer = torch.nn.Linear(3, 2)
    same_everywhere(layer.parameters())
    first = [parameter.detach().clone() for parameter in layer.parameters()]
    layer.weight.grad = torch.full((2, 3), 1.0 + rank)
    if rank == 0:  # the other has no gradient of the bias
        layer.bias.grad = torch.full((2,), 4.0)
    average_gradients(list(layer.parameters()))
    gradients = [p.grad for p in layer.parameters()]
    flat = Flat(layer.parameters())
    flat_P = torch.full((flat.size,), 1.0 + rank)
    layer.weight.grad, layer.bias.grad = flat.views(flat_P)
    average_gradients(list(layer.parameters()), flat_P if rank == 0 else None)  # apart on the other
    again = [p.grad for p in layer.parameters()]
    torch.save({"first": first, "gradients": gradients, "again": again}, f"{folder}/{rank}.pt")


def test_two_processes(two_processes):
    folder = two_processes(process)
    zero, one = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    for mine, other in zip(zero["first"], one["first"], strict=True):
        assert torch.equal(mine, other), "processes began with other weights"
    for found in (zero, one):
        weight, bias = found["gradients"]
        assert weight.tolist() == [[1.5] * 3] * 2
        assert bias.tolist() == [2.0] * 2
        assert all(gradient.unique().tolist() == [1.5] for gradient in found["again"])


@pytest.mark.parametrize("norm", [0.5, 100.0])
def test_the_norm_of_flat_gradients_is_clipped(norm):
    flat_P = torch.randn(40, generator=torch.Generator().manual_seed(1))
    parameter = torch.nn.Parameter(torch.zeros(40))
    parameter.grad = flat_P.clone()
    torch.nn.utils.clip_grad_norm_([parameter], norm)
    clip_norm(flat_P, norm)
    torch.testing.assert_close(flat_P, parameter.grad)
