"""States of torch's random number generators in checkpoints."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def random_states() -> list[dict[str, Tensor]]:
    """States of torch's generators on every process, in order of rank; collective.

    Laser draws nothing from them, but a network of another make may.
    """
    mine = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        mine["cuda"] = torch.cuda.get_rng_state()
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, mine)
    return states


def restore_random_state(states: list[dict[str, Tensor]]) -> None:
    """Continue this process's generators where they were; another number of processes starts them anew."""
    if len(states) != dist.get_world_size():
        return
    mine = states[dist.get_rank()]
    torch.set_rng_state(mine["cpu"])
    if "cuda" in mine and torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["cuda"])
