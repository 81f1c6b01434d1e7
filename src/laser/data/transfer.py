"""Batches on their way to a device: one copy each, made beside what the device computes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from laser.batch import Batch
from laser.data.packed import Packed, plain_memory

GROWTH = 1.25
"""Of page-locked buffers, where a batch is larger than all before it."""


class Sent(NamedTuple):
    """A batch whose copy has been asked for."""

    batch: Batch
    flat: Tensor
    """The buffer that its tensors are parts of."""
    copied: torch.cuda.Event | None
    """``None``: it is there."""


class Transfer:
    """Brings batches to a device from the threads that prepare them; on a CPU there is nothing to bring.

    On a GPU batches are copied in a stream of their own, beside the work of the current stream, which waits for its
    batch there; no host thread waits. Page-locked memory and the device's are those of PyTorch's caching allocators:
    either takes memory back once all streams that use it are done with it.

    Args:
        device: where batches are needed.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        # Streams of this priority come from a pool of their own, so that none of them is ever one that is recorded.
        self.stream = torch.cuda.Stream(self.device, priority=-1) if self.device.type == "cuda" else None
        self.capacity = 0

    def memory(self, size: int) -> Tensor:
        """A uint8 buffer of ``size`` bytes in host memory to put a batch in, page-locked when a GPU copies it.

        Page-locking takes long, and no thread can launch anything meanwhile. PyTorch keeps what was locked, but by
        powers of two. So all buffers are as large as the largest batch needs and some more: a short one, or one that
        is a little larger than others, takes what is there.
        """
        if self.stream is None:
            return plain_memory(size)
        if size > self.capacity:
            self.capacity = int(size * GROWTH)
        with torch.cuda.stream(self.stream):
            return torch.empty(self.capacity, dtype=torch.uint8, pin_memory=True)[:size]

    def send(self, packed: Packed) -> Sent:
        """Begin the copy of a batch that is in memory from ``memory``; called by any thread."""
        if self.stream is None:
            return Sent(packed.batch(), packed.flat, None)
        # The stream's device is the current one here: page-locking on another GPU would open it for this process.
        with torch.cuda.stream(self.stream):
            there = packed.flat.to(self.device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self.stream)
            return Sent(packed.batch(there), there, copied)

    def receive(self, sent: Sent) -> Batch:
        """The batch, for work in the current stream of the calling thread, which is told to wait for the copy."""
        if sent.copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(sent.copied)
            sent.flat.record_stream(current)
        return sent.batch
