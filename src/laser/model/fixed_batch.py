"""Tensors of fixed size and address that take in batches of any size, for a step that is recorded.

What is missing in a batch is made up by *fillers*: samples behind all others, whose histories share the missing events.
They change nothing: their logits reach no loss, so that their gradients are zeros.

    samples      | batch            | empty ... | filler ... |      empty ones only in a batch with fewer samples
    histories    | of the batch | none ... | one a filler    |
    events       | of the batch               | of fillers   |

Legend of shape suffixes: B samples; U histories; T events, packed; R distinct ids of a table; W width of a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laser.batch import Batch
from laser.ops.segments import Capacity, SegmentLayout

FILLERS = 16
"""Samples among which surplus events are divided, lest one program of a kernel be busy with all of them."""
GROWTH = 1.03
"""Of sizes that were too small. Sums over a thousand histories differ by some 2 %."""
SLACK = 16


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

    def enough(
        self,
        batch: Batch,
        rows: dict[str, Tensor],
        shared: bool,
        needed: Callable[[Tensor, Tensor], Capacity],
    ) -> tuple[Room, tuple[Tensor, Tensor]]:
        """These sizes, or larger ones where the batch needs them, and its offsets and histories filled up to them.

        Args:
            batch: with copies of its offsets on the host.
            rows: [R, W] of its distinct ids, by table.
            shared: whether samples may share a history.
            needed: capacity of the layout of filled offsets and histories.
        """
        off_U1, history_of_B = on_host(batch)
        room, events = self, int(off_U1[-1])
        samples = max(room.samples, len(batch))
        if events > room.events:
            room = replace(room, events=_grown(events))
        counts = {name: each.shape[0] for name, each in rows.items()}
        known = room.rows or {}
        if any(count > known.get(name, -1) for name, count in counts.items()):
            grown = {name: _grown(count) for name, count in counts.items()}
            room = replace(room, rows={name: max(count, known.get(name, 0)) for name, count in grown.items()})
        offsets = filled_offsets(off_U1, history_of_B, samples, room.events)
        capacity = needed(*offsets)
        if room.capacity.cover(capacity) != room.capacity:
            grown_capacity = Capacity(*map(_grown, capacity))
            # Events of all samples are those of the histories where none is shared: exactly, as matches need it.
            exact = grown_capacity if shared else grown_capacity._replace(num_events=room.events)
            room = replace(room, capacity=room.capacity.cover(exact))
        return replace(room, samples=samples, shared=shared), offsets


def filled_offsets(off_U1: Tensor, history_of_B: Tensor, samples: int, events: int) -> tuple[Tensor, Tensor]:
    """Offsets and histories of ``samples`` samples and the fillers, which have ``events`` events together.

    Every sample that is not in the batch has a history of its own, so that nothing is shared which was not before.
    """
    histories, present = len(off_U1) - 1, len(history_of_B)
    total = int(off_U1[-1])
    surplus = events - total
    # By numpy, whose calls take a fifth of the time of torch's.
    off = np.full(samples + FILLERS + 1, total, np.int64)
    off[: histories + 1] = off_U1.numpy()
    off[samples + 1 :] += np.arange(1, FILLERS + 1) * surplus // FILLERS
    history = np.arange(samples + FILLERS)
    history[:present] = history_of_B.numpy()
    history[present:samples] = np.arange(histories, histories + samples - present)
    return torch.from_numpy(off), torch.from_numpy(history)


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


class FixedBatch:
    """A batch whose tensors stay where they are, with the rows of its ids and the layout of its segments.

    Args:
        batch: one that fits, for dtypes and shapes.
        rows: of its distinct ids, by table.
        layout: of its filled offsets, with the room's capacity.
        offsets: these offsets and histories, on the host.
        room: sizes.
        numbers_of_ids: ``TableEmbeddings.numbers_of_ids``.
    """

    def __init__(
        self,
        batch: Batch,
        rows: dict[str, Tensor],
        layout: SegmentLayout,
        offsets: tuple[Tensor, Tensor],
        room: Room,
        numbers_of_ids: Callable[[Batch], dict[str, list[int]]],
    ) -> None:
        self.room, self.numbers_of_ids = room, numbers_of_ids
        device, samples = batch.row_B.device, room.samples + FILLERS
        self.staging = Staging(len(layout.index_I), device)
        self.layout = replace(layout, index_I=layout.index_I.to(device, copy=True))
        parts = self.layout.parts
        self.batch = replace(
            batch,
            history={name: _fixed(ids, room.events) for name, ids in batch.history.items()},
            off_U1=parts.off_U1,
            age_T=_fixed(batch.age_T, room.events),
            history_of_B=parts.history_of_B,
            target={name: _fixed(ids, samples) for name, ids in batch.target.items()},
            context={name: _fixed(ids, samples) for name, ids in batch.context.items()},
            label_B=_fixed(batch.label_B, samples),
            user_B=_fixed(batch.user_B, samples),
            timestamp_B=_fixed(batch.timestamp_B, samples),
            row_B=_fixed(batch.row_B, samples),
            history_key_U=_fixed(batch.history_key_U, samples),
            step=torch.zeros((), dtype=torch.int64, device=device),  # type: ignore[arg-type]
            distinct={},
            place={},
            on_host=offsets,
        )
        numbers = numbers_of_ids(self.batch)
        self.batch.place = {name: _fixed(place, sum(numbers[name])) for name, place in batch.place.items()}
        assert room.rows is not None
        self.rows = {name: _fixed(each.detach(), room.rows[name]).requires_grad_() for name, each in rows.items()}

    @torch.no_grad()
    def take_in(self, batch: Batch, rows: dict[str, Tensor], layout: SegmentLayout) -> None:
        """Copy a batch that fits.

        Behind a smaller one come zeros, not what was there before: how sums are grouped depends on it.
        """
        self.staging.send(layout.index_I, self.layout.index_I)
        pairs = self._pairs(batch)
        tails = [to[source.shape[0] :] for to, source in pairs if len(to) > source.shape[0]]
        for some in _by_dtype(tails, lambda tail: tail.dtype):
            torch._foreach_zero_(some)
        pairs += [(self.rows[name].detach(), rows[name].detach()) for name in rows]  # whose tails no id names
        for some in _by_dtype(pairs, lambda pair: pair[0].dtype):
            torch._foreach_copy_([to[: source.shape[0]] for to, source in some], [source for _, source in some])
        self.batch.step.fill_(batch.step)  # type: ignore[attr-defined]

    def _pairs(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Where each tensor of a batch goes, and it."""
        fixed = self.batch
        pairs = [(getattr(fixed, name), getattr(batch, name)) for name in ("age_T", "row_B", "history_key_U")]
        for there, here in (
            (fixed.history, batch.history),
            (fixed.target, batch.target),
            (fixed.context, batch.context),
        ):
            pairs += [(there[name], here[name]) for name in here]
        there_numbers, here_numbers = self.numbers_of_ids(fixed), self.numbers_of_ids(batch)
        for name, place in batch.place.items():
            pairs += zip(fixed.place[name].split(there_numbers[name]), place.split(here_numbers[name]))
        return pairs


def on_host(batch: Batch) -> tuple[Tensor, Tensor]:
    """Offsets and histories of a batch in host memory, or where they are."""
    return batch.on_host or (batch.off_U1, batch.history_of_B)


def _fixed(tensor: Tensor, count: int) -> Tensor:
    return tensor.new_zeros(count, *tensor.shape[1:])


def _by_dtype(values: list[Any], dtype_of: Callable[[Any], torch.dtype]) -> list[list[Any]]:
    """One list for each dtype: torch's operations on lists are one kernel only then."""
    found: dict[torch.dtype, list[Any]] = {}
    for value in values:
        found.setdefault(dtype_of(value), []).append(value)
    return list(found.values())


def _grown(size: int) -> int:
    return int(size * GROWTH) + SLACK
