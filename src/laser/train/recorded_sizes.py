"""Sizes of recorded steps in checkpoints: a run goes on with those that it had, lest its sums round otherwise."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from laser.model.fixed_batch import Room
from laser.model.recording import RecordedNetwork


def stored_sizes(recorded: RecordedNetwork | None) -> list[dict[str, Any] | None]:
    """Sizes on every process, in order of rank; collective. Each has samples of its own, and so sizes of its own."""
    sizes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(sizes, None if recorded is None else recorded.room.stored())
    return sizes


def restore_sizes(recorded: RecordedNetwork | None, sizes: list[dict[str, Any] | None]) -> None:
    """Go on with this process's sizes; another number of processes finds its own anew."""
    if recorded is None or len(sizes) != dist.get_world_size():
        return
    if (mine := sizes[dist.get_rank()]) is not None:
        recorded.room = Room.restored(mine)
