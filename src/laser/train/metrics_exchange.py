"""Moving integer arrays between the processes of the default group, of any length and also empty ones.

One process, or no process group, is the case of one rank: the arrays come straight back.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist


def world() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _wire() -> torch.device:
    """Where the group's back end wants its tensors: gloo moves host memory, NCCL device memory."""
    return torch.device("cpu" if "gloo" in dist.get_backend() else "cuda")


def gather(values: np.ndarray) -> list[np.ndarray]:
    """Every rank's ``values`` (int64, first dimension free, the others equal on all ranks), in rank order."""
    return exchange([values] * world()[1])


def exchange(outgoing: list[np.ndarray]) -> list[np.ndarray]:
    """All to all: ``outgoing[q]`` goes to rank q; what each rank sent to this one comes back, in rank order.

    Arrays are int64; their first dimension is free, the others are equal on all ranks.
    """
    if world()[1] == 1:
        return outgoing
    shape, device = outgoing[0].shape[1:], _wire()
    send_W = torch.tensor([len(values) for values in outgoing], dtype=torch.int64, device=device)
    receive_W = torch.empty_like(send_W)
    dist.all_to_all_single(receive_W, send_W)
    send, receive = send_W.tolist(), receive_W.tolist()
    packed = torch.from_numpy(np.concatenate(outgoing)).to(device)
    incoming = torch.empty((sum(receive), *shape), dtype=torch.int64, device=device)
    dist.all_to_all_single(incoming, packed, receive, send)
    return [part.cpu().numpy() for part in incoming.split(receive)]
