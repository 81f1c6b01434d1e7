"""Batches on their way to a device: one copy each, made beside what the device computes.

A batch has some 30 tensors. Page-locked and copied one by one they cost the host more time than the copy takes. They
are packed into one buffer, tensor after tensor, each at a multiple of ``ALIGNMENT``::

    history.item int64      history.skill int64     ...   place.skill int32
    [ . . . . . . . . |pad] [ . . . . . . . . |pad] ...   [ . . . . . . . |pad]
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from laser.batch import Batch
from laser.seqvault.jit import kernel, memmove

ALIGNMENT = 128
"""Bytes: a cache line of a GPU. Kernels that read in units of 16 bytes are compiled for such addresses."""


class Sent(NamedTuple):
    """A batch whose copy has been asked for."""

    batch: Batch
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

    def send(self, batch: Batch) -> Sent:
        """Begin the copy of a batch that is in host memory; called by any thread."""
        if self.stream is None:
            return Sent(batch, None)
        # The stream's device is the current one here: page-locking on another GPU would open it for this process.
        with torch.cuda.stream(self.stream):
            there = pack(batch, pin_memory=True).to(self.device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self.stream)
            return Sent(unpack(there, batch), copied)

    def receive(self, sent: Sent) -> Batch:
        """The batch, for work in the current stream of the calling thread, which is told to wait for the copy."""
        if sent.copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(sent.copied)
            sent.batch.record_stream(current)
        return sent.batch


def pack(batch: Batch, *, pin_memory: bool = False) -> Tensor:
    """All tensors of a batch in one uint8 buffer.

    Args:
        batch: in host memory.
        pin_memory: whether the buffer shall be page-locked.
    """
    parts: list[Tensor] = []
    batch.map(lambda tensor: parts.append(tensor.contiguous()) or tensor)
    bytes_I = [part.nbytes for part in parts]
    first_I1 = np.cumsum([0, *map(_aligned, bytes_I)])
    flat = torch.empty(int(first_I1[-1]), dtype=torch.uint8, pin_memory=pin_memory)
    # One call that leaves the interpreter to others, instead of one a tensor.
    _copy(np.array([part.data_ptr() for part in parts]), flat.data_ptr() + first_I1, np.array(bytes_I))
    return flat


def unpack(flat: Tensor, batch: Batch) -> Batch:
    """A batch of views into a buffer.

    Args:
        flat: what ``pack`` made of ``batch``, on any device.
        batch: for shapes and dtypes; its own offsets and histories are the copies on the host.
    """
    typed: dict[torch.dtype, Tensor] = {}
    first = 0

    def view(tensor: Tensor) -> Tensor:
        nonlocal first
        if tensor.dtype not in typed:
            typed[tensor.dtype] = flat.view(tensor.dtype)
        begin = first // tensor.itemsize
        first += _aligned(tensor.nbytes)
        return typed[tensor.dtype][begin : begin + math.prod(tensor.shape)].view(tensor.shape)

    return replace(batch.map(view), on_host=batch.on_host or (batch.off_U1, batch.history_of_B))


@kernel
def _copy(from_I, to_I, bytes_I):
    for i in range(len(bytes_I)):
        memmove(to_I[i], from_I[i], bytes_I[i])


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
