"""How long the forward look-ups of a process take, the exchange of ids and rows with the other processes included."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn


class LookUpTime:
    """Times a module's forward passes while it trains; on a GPU by events of the device, without waiting for it.

    Args:
        module: the embeddings of a network.
        device: of this process.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds, self.passes = 0.0, 0
        self.open: list[tuple[Any, Any]] = []
        self.hooks = [module.register_forward_pre_hook(self._begin), module.register_forward_hook(self._end)]

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _begin(self, module: nn.Module, _inputs: Any) -> None:
        self.began = self._now() if module.training else None

    def _end(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        if self.began is not None:
            self.open.append((self.began, self._now()))
            self._collect()

    def _collect(self) -> None:
        """Add up what the device has done by now."""
        while self.open and (not self.on_gpu or self.open[0][1].query()):
            began, ended = self.open.pop(0)
            self.seconds += began.elapsed_time(ended) / 1e3 if self.on_gpu else ended - began
            self.passes += 1

    @property
    def milliseconds(self) -> float:
        """Mean of the passes so far."""
        return 1e3 * self.seconds / max(self.passes, 1)

    def end(self) -> None:
        """Leave the module alone."""
        for hook in self.hooks:
            hook.remove()
