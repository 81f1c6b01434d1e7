"""The dense part of a training step, recorded once and replayed: two launches instead of some five hundred.

Small kernels are quicker than the host can launch them. A CUDA graph launches all of them at once, but it has fixed
sizes and addresses. So tensors of fixed size take in each batch, and *fillers* what is missing in it: samples behind
all others, whose histories share the missing events. They change nothing: their logits reach no loss, so that their
gradients are zeros. Where a batch is larger than the tensors, they are made larger, and the step is recorded anew.

    samples      | batch            | empty ... | filler ... |      empty ones only in a batch with fewer samples
    histories    | of the batch | none ... | one a filler    |
    events       | of the batch               | of fillers   |

Off the GPU nothing is recorded; the same work on the same tensors is then called step by step (for tests).

Legend of shape suffixes: B samples; U histories; T events, packed; R distinct ids of a table; W width of a table;
P all parameters, one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from laser.batch import Batch
from laser.model.output import ModelOutput
from laser.model.prepared import Prepared
from laser.ops.segments import Capacity, capacity_needed, segment_layout

FILLERS = 16
"""Samples among which surplus events are divided, lest one program of a kernel be busy with all of them."""
GROWTH = 1.03
"""Of sizes that were too small. Sums over a thousand histories differ by some 2 %."""
SLACK = 16
WARM_UP = 2


@dataclass(frozen=True)
class Room:
    """Sizes of the fixed tensors.

    Args:
        samples: without fillers.
        events: with those of fillers.
        rows: of distinct ids, by table.
        capacity: of the layout.
        shared: whether samples may share a history.
    """

    samples: int = 0
    events: int = 0
    rows: dict[str, int] | None = None
    capacity: Capacity = field(default_factory=Capacity)
    shared: bool = False

    def stored(self) -> dict[str, Any]:
        """For a checkpoint: products of other sizes round otherwise, so a run goes on with the sizes that it had."""
        return {**vars(self), "capacity": list(self.capacity)}

    @classmethod
    def restored(cls, stored: dict[str, Any]) -> Room:
        """What ``stored`` gave."""
        return replace(cls(**stored), capacity=Capacity(*stored["capacity"]))


def filled_offsets(off_U1: Tensor, history_of_B: Tensor, samples: int, events: int) -> tuple[Tensor, Tensor]:
    """Offsets and histories of ``samples`` samples and the fillers, which have ``events`` events together.

    Every sample that is not in the batch has a history of its own, so that nothing is shared which was not before.
    """
    histories, present = len(off_U1) - 1, len(history_of_B)
    total = int(off_U1[-1])
    surplus = events - total
    off = torch.full((samples + FILLERS + 1,), total, dtype=torch.int64)
    off[: histories + 1] = off_U1
    off[samples + 1 :] += torch.arange(1, FILLERS + 1) * surplus // FILLERS
    history = torch.arange(samples + FILLERS)
    history[:present] = history_of_B
    history[present:samples] = histories + torch.arange(samples - present)
    return off, history


class Staging:
    """Page-locked host memory through which numbers go to a device: allocating it anew each step may take long.

    Args:
        length: of what is sent, int64.
        device: to which.
    """

    def __init__(self, length: int, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.buffers = [torch.empty(length, dtype=torch.int64, pin_memory=self.on_gpu) for _ in range(2)]
        self.sent = [torch.cuda.Event() for _ in range(2)] if self.on_gpu else []

    def send(self, numbers_I: Tensor, there_I: Tensor) -> None:
        """Copy, without waiting for the device unless it is two copies behind."""
        self.buffers.reverse()
        self.sent.reverse()
        if self.on_gpu:
            self.sent[0].synchronize()
        self.buffers[0].copy_(numbers_I)
        there_I.copy_(self.buffers[0], non_blocking=True)
        if self.on_gpu:
            self.sent[0].record()


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
        self.made: Room | None = None
        """Of the tensors that there are."""
        self.recordings = 0
        """How often the step was recorded."""
        self.addresses: list[int] = []
        self.pool: Any = None

    def __call__(self, batch: Batch) -> ModelOutput:
        """Logits of a batch, as of the network itself."""
        if not self._serves(batch):
            return self.network(batch)
        rows = self.network.embeddings.look_up(batch)
        if not all(each.requires_grad for each in rows.values()):
            return self.network(batch)
        self._take_in(batch, rows)
        logit_B = _Replay.apply(self, len(batch), *rows.values())
        return ModelOutput(logit_B, None, None)  # type: ignore[arg-type]

    def _serves(self, batch: Batch) -> bool:
        _, history_of_B = batch.on_host or (None, batch.history_of_B)
        if not len(batch) or not batch.distinct or history_of_B.is_cuda:
            return False
        return not (self.network.matched.pairs and _is_shared(history_of_B))

    def _take_in(self, batch: Batch, rows: dict[str, Tensor]) -> None:
        """Copy a batch to where the recorded step looks for it."""
        network, device = self.network, batch.label_B.device
        off_U1, history_of_B = batch.on_host or (batch.off_U1, batch.history_of_B)
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
        shared = self.room.shared or _is_shared(history_of_B)
        tiles = network.sta.tiling(device, dtype)(shared)
        width = network.segment_width
        room = self._enough(batch, rows, off_U1, history_of_B, shared, lambda o, h: capacity_needed(o, h, width, tiles))
        offsets = filled_offsets(off_U1, history_of_B, room.samples, room.events)
        layout = segment_layout(*offsets, width, lambda _: tiles, capacity=room.capacity)
        addresses = [parameter.data_ptr() for parameter in self.parameters]
        new = room != self.made or addresses != self.addresses
        if new:
            self.room = self.made = room
            self.addresses = addresses
            self._make(batch, rows, layout, offsets)
        self.staging.send(layout.index_I, self.layout.index_I)
        self._copy(batch, rows)
        if new:
            self._record(device)

    def _enough(
        self,
        batch: Batch,
        rows: dict[str, Tensor],
        off_U1: Tensor,
        history_of_B: Tensor,
        shared: bool,
        needed: Callable[[Tensor, Tensor], Capacity],
    ) -> Room:
        room, events = self.room, int(off_U1[-1])
        samples = max(room.samples, len(batch))
        if events > room.events:
            room = replace(room, events=_grown(events))
        counts = {name: each.shape[0] for name, each in rows.items()}
        known = room.rows or {}
        if any(count > known.get(name, -1) for name, count in counts.items()):
            grown = {name: _grown(count) for name, count in counts.items()}
            room = replace(room, rows={name: max(count, known.get(name, 0)) for name, count in grown.items()})
        capacity = needed(*filled_offsets(off_U1, history_of_B, samples, room.events))
        if room.capacity.cover(capacity) != room.capacity:
            grown_capacity = Capacity(*map(_grown, capacity))
            # Events of all samples are those of the histories where none is shared: exactly, as matches need it.
            exact = grown_capacity if shared else grown_capacity._replace(num_events=room.events)
            room = replace(room, capacity=room.capacity.cover(exact))
        return replace(room, samples=samples, shared=shared)

    def _make(self, batch: Batch, rows: dict[str, Tensor], layout: Any, offsets: tuple[Tensor, Tensor]) -> None:
        """Tensors of the sizes of the room."""
        room, network = self.room, self.network
        samples = room.samples + FILLERS

        def fixed(tensor: Tensor, count: int) -> Tensor:
            return tensor.new_zeros(count, *tensor.shape[1:])

        def each(fields: dict[str, Tensor], count: int) -> dict[str, Tensor]:
            return {name: fixed(tensor, count) for name, tensor in fields.items()}

        device = batch.row_B.device
        self.staging = Staging(len(layout.index_I), device)
        self.layout = replace(layout, index_I=layout.index_I.to(device, copy=True))
        parts = self.layout.parts
        self.batch = replace(
            batch,
            history=each(batch.history, room.events),
            off_U1=parts.off_U1,
            age_T=fixed(batch.age_T, room.events),
            history_of_B=parts.history_of_B,
            target=each(batch.target, samples),
            context=each(batch.context, samples),
            label_B=fixed(batch.label_B, samples),
            user_B=fixed(batch.user_B, samples),
            timestamp_B=fixed(batch.timestamp_B, samples),
            row_B=fixed(batch.row_B, samples),
            history_key_U=fixed(batch.history_key_U, samples),
            step=torch.zeros((), dtype=torch.int64, device=batch.row_B.device),  # type: ignore[arg-type]
            distinct={},
            place={},
            on_host=offsets,
        )
        sizes = network.embeddings.numbers_of_ids(self.batch)
        self.batch.place = {name: fixed(batch.place[name], sum(sizes[name])) for name in batch.place}
        assert room.rows is not None
        self.rows = {name: fixed(each.detach(), room.rows[name]).requires_grad_() for name, each in rows.items()}
        self.d_rows = {name: torch.zeros_like(each) for name, each in self.rows.items()}
        self.logit_B = torch.zeros(samples, device=batch.row_B.device)
        self.d_logit_B = torch.zeros_like(self.logit_B)
        self.d_parameters_P = self.logit_B.new_zeros(sum(parameter.numel() for parameter in self.parameters))
        flat = self.d_parameters_P.split([parameter.numel() for parameter in self.parameters])
        self.gradients = [part.view_as(parameter) for part, parameter in zip(flat, self.parameters)]

    @torch.no_grad()
    def _copy(self, batch: Batch, rows: dict[str, Tensor]) -> None:
        """Behind a smaller batch come zeros, not what was there before: how sums are grouped depends on it."""
        fixed, embeddings = self.batch, self.network.embeddings
        pairs: list[tuple[Tensor, Tensor]] = []
        for kind in ("history", "target", "context"):
            there, here = getattr(fixed, kind), getattr(batch, kind)
            pairs += [(there[name], here[name]) for name in here]
        pairs += [(getattr(fixed, name), getattr(batch, name)) for name in ("age_T", "row_B", "history_key_U")]
        there, here = embeddings.numbers_of_ids(fixed), embeddings.numbers_of_ids(batch)
        for name in batch.place:
            pairs += zip(fixed.place[name].split(there[name]), batch.place[name].split(here[name]))
        tails = [to.detach()[source.shape[0] :] for to, source in pairs if len(to) > source.shape[0]]
        for dtype in {tail.dtype for tail in tails}:
            torch._foreach_zero_([tail for tail in tails if tail.dtype == dtype])
        pairs += [(self.rows[name], rows[name]) for name in rows]  # whose tails no id names
        by_dtype: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for to, source in pairs:
            by_dtype.setdefault(to.dtype, []).append((to.detach()[: source.shape[0]], source.detach()))
        for each in by_dtype.values():
            torch._foreach_copy_([to for to, _ in each], [source for _, source in each])
        fixed.step.fill_(batch.step)  # type: ignore[attr-defined]

    def _forward(self) -> None:
        with torch.enable_grad():
            output = self.network(self.batch, prepared=Prepared(self.rows, self.layout))
        self.output_B = output.logit_B
        self.logit_B.copy_(self.output_B.detach())

    def _backward(self) -> None:
        inputs = [*self.rows.values(), *self.parameters]
        found = torch.autograd.grad(self.output_B, inputs, self.d_logit_B, allow_unused=True)
        gradients = [torch.zeros_like(x) if d is None else d for x, d in zip(inputs, found, strict=True)]
        for d_rows, gradient in zip(self.d_rows.values(), gradients):
            d_rows.copy_(gradient)
        torch.cat([gradient.flatten() for gradient in gradients[len(self.rows) :]], out=self.d_parameters_P)

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
            # The loader's threads go on allocating page-locked memory meanwhile.
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
        return recorded.logit_B[:samples].clone()

    @staticmethod
    def backward(ctx: Any, d_logit_B: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        recorded: RecordedNetwork = ctx.recorded
        recorded.d_logit_B.zero_()
        recorded.d_logit_B[: ctx.samples].copy_(d_logit_B)
        recorded.play_backward()
        for parameter, gradient in zip(recorded.parameters, recorded.gradients):
            parameter.grad = gradient
        d_rows = [each[:count] for each, count in zip(recorded.d_rows.values(), ctx.counts)]
        return None, None, *d_rows


def _grown(size: int) -> int:
    return int(size * GROWTH) + SLACK


def _is_shared(history_of_B: Tensor) -> bool:
    return int(torch.bincount(history_of_B).max()) > 1
