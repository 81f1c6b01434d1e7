"""Numbers of every step on their way to a device, through memory that is allocated once.

Legend of shape suffixes: I numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Staging:
    """Page-locked host memory through which numbers go to a device: allocating it anew each step may take long.

    Args:
        length: of what is sent, int64.
        device: to which.
    """

    def __init__(self, length: int, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.buffers = [torch.zeros(length, dtype=torch.int64, pin_memory=self.on_gpu) for _ in range(2)]
        self.arrays = [buffer.numpy() for buffer in self.buffers]
        """The two buffers, to be written in turn."""
        self.sent = [torch.cuda.Event() for _ in range(2)] if self.on_gpu else []
        self.turn = 0

    def next(self) -> int:
        """Which of the arrays is to be written now; waits only for a device that is two copies behind."""
        self.turn = 1 - self.turn
        if self.on_gpu:
            self.sent[self.turn].synchronize()
        return self.turn

    def send(self, there_I: Tensor) -> None:
        """Copy what was written, without waiting."""
        there_I.copy_(self.buffers[self.turn], non_blocking=True)
        if self.on_gpu:
            self.sent[self.turn].record()
