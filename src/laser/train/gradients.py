"""Gradients of the dense parameters, averaged over processes after the backward pass.

One reduction of all of them instead of DDP's buckets: they are few beside the tables, DDP copies every gradient into a
bucket and back even with one process, and its hooks do not see a recorded backward pass (``laser.model.recording``).

Legend of shape suffixes: P all dense parameters, one after another (``laser.model.flat``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from laser.model.flat import Flat


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], flat_P: Tensor | None = None) -> None:
    """Replace every gradient by its mean over all processes; one that is missing here counts as zeros.

    Args:
        parameters: in the same order on every process.
        flat_P: their gradients, as ``laser.model.flat`` has them, if they lie so here; other processes may have them
            apart.
    """
    count = dist.get_world_size()
    if count == 1:
        return
    if flat_P is not None:
        dist.all_reduce(flat_P.div_(count))
        return
    gradients: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = Flat(gradients)
    whole_P = flat.filled(gradients).div_(count)
    dist.all_reduce(whole_P)
    torch._foreach_copy_(gradients, flat.views(whole_P))


@torch.no_grad()
def clip_norm(flat_P: Tensor, norm: float) -> None:
    """Scale gradients down to this 2-norm if theirs is larger, as ``torch.nn.utils.clip_grad_norm_`` does."""
    flat_P.mul_((norm / (torch.linalg.vector_norm(flat_P) + 1e-6)).clamp(max=1.0))


@torch.no_grad()
def same_everywhere(parameters: Iterable[nn.Parameter]) -> None:
    """Let all processes begin with the weights of process 0."""
    for parameter in parameters:
        dist.broadcast(parameter.detach(), src=0)
