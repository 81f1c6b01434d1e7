"""Gradients of the dense parameters, averaged over processes after the backward pass.

One reduction of all of them instead of DDP's buckets: they are few beside the tables, DDP copies every gradient into a
bucket and back even with one process, and its hooks do not see a recorded backward pass (``laser.model.recording``).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over all processes; one that is missing here counts as zeros."""
    if dist.get_world_size() == 1:
        return
    parameters = list(parameters)
    gradients: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat.div_(dist.get_world_size()))
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients)])


@torch.no_grad()
def same_everywhere(parameters: Iterable[nn.Parameter]) -> None:
    """Let all processes begin with the weights of process 0."""
    for parameter in parameters:
        dist.broadcast(parameter.detach(), src=0)
