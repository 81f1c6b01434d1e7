"""The dense part of a training step, recorded once and replayed: two launches instead of some five hundred.

Small kernels are quicker than the host can launch them. A CUDA graph launches all of them at once, but it has fixed
sizes and addresses, so that it works on a ``laser.model.fixed_batch``. Where a batch is larger than that, it is made
larger, and the step is recorded anew.

Off the GPU nothing is recorded; the same work on the same tensors is then called step by step (for tests).

Legend of shape suffixes: B samples; P all parameters, one after another (``laser.model.flat``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laser.batch import Batch
from laser.model.fixed_batch import FILLERS, FixedBatch, Room, on_host
from laser.model.flat import Flat
from laser.model.half_copies import HalfCopies
from laser.model.output import ModelOutput
from laser.model.prepared import Prepared
from laser.ops.segments import Counted, Tiling, counted

WARM_UP = 2


class RecordedNetwork:
    """Calls a network, and in training replays what follows its look-up.

    Gradients of the dense parameters are set, not added, in the backward pass; nothing is recorded while a batch has
    no samples or has not found its distinct ids, or where matches are to be found in shared histories.

    Args:
        network: whose ``recordable`` is true.
        parameters: all that the network trains beside its tables.
    """

    def __init__(self, network: Any, parameters: Sequence[nn.Parameter]) -> None:
        self.network, self.parameters = network, list(parameters)
        self.room = Room()
        """Sizes to record with; a resumed run sets those that it had."""
        self.fixed: FixedBatch | None = None
        self.recordings = 0
        """How often the step was recorded."""
        self.addresses: list[int] = []
        """Of the parameters, when the step was recorded."""
        self.tilings: dict[tuple[torch.device, torch.dtype, bool], Tiling] = {}
        self.pool: Any = None

    def __call__(self, batch: Batch) -> ModelOutput:
        """Logits of a batch, as of the network itself; they are there until the next call."""
        if not self._serves(batch):
            return self._plain(batch)
        rows = {name: each.contiguous() for name, each in self.network.embeddings.look_up(batch).items()}
        if not all(each.requires_grad for each in rows.values()):
            return self._plain(batch)
        self._take_in(batch, rows)
        logit_B = _Replay.apply(self, len(batch), *rows.values())
        return ModelOutput(logit_B, None, None)  # type: ignore[arg-type]

    def flat_gradients(self) -> Tensor | None:
        """All dense gradients [P], or ``None`` when the last backward pass was not replayed."""
        first = self.parameters[0].grad if self.parameters else None
        if self.fixed is None or first is None or first.data_ptr() != self.d_parameters_P.data_ptr():
            return None
        return self.d_parameters_P

    def _plain(self, batch: Batch) -> ModelOutput:
        """The network itself; its gradients are not added to those of a replayed step, which may still be there."""
        if self.flat_gradients() is not None:
            for parameter in self.parameters:
                parameter.grad = None
        return self.network(batch)

    def _serves(self, batch: Batch) -> bool:
        _, history_of_B = on_host(batch)
        if not len(batch) or not batch.distinct or not batch.items or history_of_B.is_cuda:
            return False
        return not (self.network.matched.pairs and _is_shared(history_of_B))

    def _take_in(self, batch: Batch, rows: dict[str, Tensor]) -> None:
        """Copy a batch to where the recorded step looks for it; record the step if there is none for its size."""
        network, device = self.network, batch.label_B.device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
        piece = self._piece(device, dtype)
        self.room, found = self.room.enough(batch, rows, partial(self._counted, device, dtype), piece)
        addresses = list(map(Tensor.data_ptr, self.parameters))
        new = self.fixed is None or self.fixed.room != self.room or addresses != self.addresses
        if new:
            self.fixed = FixedBatch(batch, rows, found, self.room, network.embeddings.numbers_of_ids)
            self.addresses = addresses
            self._make_gradients(device)
        assert self.fixed is not None
        self.fixed.take_in(batch, rows, found)
        if new:
            self.fixed.finish()
            self.copies = HalfCopies(network, self.parameters, device.type, dtype, self._inputs())
            self._record(device)

    def _counted(
        self, device: torch.device, dtype: torch.dtype, off_U1: np.ndarray, history_of_B: np.ndarray
    ) -> Counted:
        def tiling(shared: bool) -> Tiling:
            return self._tiling(device, dtype, self.room.shared or shared)

        return counted(off_U1, history_of_B, self.network.segment_width, tiling)

    def _tiling(self, device: torch.device, dtype: torch.dtype, shared: bool) -> Tiling:
        key = (device, dtype, shared)
        if key not in self.tilings:
            self.tilings[key] = self.network.sta.tiling(device, dtype)(shared)
        return self.tilings[key]

    def _piece(self, device: torch.device, dtype: torch.dtype) -> int:
        """Events that are whole segments and whole tiles, whichever tiles there will be."""
        tiles = [self._tiling(device, dtype, shared)[:2] for shared in (False, True)]
        return math.lcm(self.network.segment_width, *(events for pair in tiles for events in pair if events))

    def _make_gradients(self, device: torch.device) -> None:
        assert self.fixed is not None
        self.d_rows = {name: torch.zeros_like(each) for name, each in self.fixed.rows.items()}
        self.logit_B = torch.zeros(self.room.samples + FILLERS, device=device)
        self.d_logit_B = torch.zeros_like(self.logit_B)
        self.samples_before = 0
        """Behind the gradients of so many samples come zeros."""
        flat = Flat(self.parameters)
        self.d_parameters_P = self.logit_B.new_zeros(flat.size)
        self.gradients = flat.views(self.d_parameters_P)

    def _inputs(self) -> dict[str, Any]:
        assert self.fixed is not None
        return {"batch": self.fixed.batch, "prepared": Prepared(self.fixed.rows, self.fixed.layout)}

    def _forward(self) -> None:
        assert self.fixed is not None
        self.fixed.finish()
        with torch.enable_grad():
            self.output_B = self.copies(**self._inputs()).logit_B
        self.logit_B.copy_(self.output_B.detach())

    def _backward(self) -> None:
        assert self.fixed is not None
        inputs = [*self.fixed.rows.values(), *self.copies.leaves()]
        # As in training without a recording: autocast would round the gradients of what was computed in float32.
        with torch.autocast(self.d_logit_B.device.type, enabled=False):
            found = torch.autograd.grad(self.output_B, inputs, self.d_logit_B, allow_unused=True)
        gradients = [torch.zeros_like(x) if d is None else d for x, d in zip(inputs, found, strict=True)]
        for d_rows, gradient in zip(self.d_rows.values(), gradients):
            d_rows.copy_(gradient)
        self.copies.write(gradients[len(self.d_rows) :], self.gradients)

    def _record(self, device: torch.device) -> None:
        self.recordings += 1
        self.play_forward, self.play_backward = self._forward, self._backward
        if device.type != "cuda":
            return
        dtype = torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", dtype, enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False):
            self.play_forward, self.play_backward = self._graphs(device)

    def _graphs(self, device: torch.device) -> tuple[Callable[[], None], Callable[[], None]]:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._forward()
                self._backward()
        torch.cuda.current_stream(device).wait_stream(stream)
        torch.cuda.synchronize(device)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graphs = []
        for work in (self._forward, self._backward):
            graph = torch.cuda.CUDAGraph()
            # The loader's threads go on allocating memory and copying batches meanwhile, in streams of their own.
            with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
                work()
            graphs.append(graph)
        return graphs[0].replay, graphs[1].replay


class _Replay(torch.autograd.Function):
    """The recorded step, seen from the rows of the tables."""

    @staticmethod
    def forward(ctx: Any, recorded: RecordedNetwork, samples: int, *rows: Tensor) -> Tensor:
        ctx.recorded, ctx.samples, ctx.counts = recorded, samples, [each.shape[0] for each in rows]
        recorded.play_forward()
        return recorded.logit_B[:samples]

    @staticmethod
    def backward(ctx: Any, d_logit_B: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        recorded: RecordedNetwork = ctx.recorded
        if ctx.samples < recorded.samples_before:
            recorded.d_logit_B[ctx.samples :].zero_()
        recorded.samples_before = ctx.samples
        recorded.d_logit_B[: ctx.samples].copy_(d_logit_B)
        recorded.play_backward()
        for parameter, gradient in zip(recorded.parameters, recorded.gradients):
            if parameter.grad is not gradient:
                parameter.grad = gradient
        d_rows = [each[:count] for each, count in zip(recorded.d_rows.values(), ctx.counts)]
        return None, None, *d_rows


def _is_shared(history_of_B: Tensor) -> bool:
    return int(np.bincount(history_of_B.numpy()).max()) > 1
