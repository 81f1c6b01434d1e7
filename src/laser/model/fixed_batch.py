"""Tensors of fixed size and address that take in batches of any size, for a step that is recorded.

What is missing in a batch is made up by *fillers*: samples behind its own, whose histories share the missing events.
They change nothing: their logits reach no loss, so that their gradients are zeros.

    samples      | batch            | filler ... | filler ... |     the first ones only in a batch with fewer samples
    histories    | of the batch     | one a filler | none ... | one a filler |
    events       | of the batch     | of fillers                             |

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
from laser.model.staging import Staging
from laser.ops.address_copy import naive
from laser.ops.availability import use_triton
from laser.ops.segments import Capacity, Counted, SegmentLayout, index_length, index_parts, offsets

FILLERS = 16
"""Samples behind all others among which surplus events are divided, lest one program of a kernel be busy with all."""
GROWTH = 1.03
"""Of sizes that were too small. Sums over a thousand histories differ by some 2 %."""
SLACK = 16


@dataclass(frozen=True)
class Room:
    """Sizes of the fixed tensors.

    Args:
        samples: without fillers.
        events: with those of fillers.
        items: distinct ones of the histories.
        rows: of distinct ids, by table.
        capacity: of the layout.
        shared: whether samples may share a history.
    """

    samples: int = 0
    events: int = 0
    items: int = 0
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
        self, batch: Batch, rows: dict[str, Tensor], count: Callable[[np.ndarray, np.ndarray], Counted], piece: int = 1
    ) -> tuple[Room, Counted]:
        """These sizes, or larger ones where the batch needs them, and its segments when it is filled up to them.

        Args:
            batch: with copies of its offsets on the host.
            rows: [R, W] of its distinct ids, by table.
            count: counts segments of filled offsets and histories.
            piece: see ``filled_offsets``.
        """
        off_U1, history_of_B = (numbers.numpy() for numbers in on_host(batch))
        room, events = self, int(off_U1[-1])
        samples = max(room.samples, len(history_of_B))
        if events > room.events:
            room = replace(room, events=_grown(events))
        items = max((ids.shape[0] for ids in batch.items.values()), default=0)
        if items > room.items:
            room = replace(room, items=_grown(items))
        counts = {name: each.shape[0] for name, each in rows.items()}
        known = room.rows or {}
        if any(count > known.get(name, -1) for name, count in counts.items()):
            grown = {name: _grown(count) for name, count in counts.items()}
            room = replace(room, rows={name: max(count, known.get(name, 0)) for name, count in grown.items()})
        found = count(*filled_offsets(off_U1, history_of_B, samples, room.events, piece))
        needed, shared = found.needed, self.shared or found.most_samples > 1
        if room.capacity.cover(needed) != room.capacity:
            grown_capacity = Capacity(*map(_grown, needed))
            # Events of all samples are those of the histories where none is shared: exactly, as matches need it.
            exact = grown_capacity if shared else grown_capacity._replace(num_events=room.events)
            room = replace(room, capacity=room.capacity.cover(exact))
        if (room.samples, room.shared) != (samples, shared):
            room = replace(room, samples=samples, shared=shared)
        return room, found


def filled_offsets(
    off_U1: np.ndarray, history_of_B: np.ndarray, samples: int, events: int, piece: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and histories of ``samples`` samples and the fillers, which have ``events`` events together.

    Every sample that is not in the batch is a filler, too, and has a history of its own, so that nothing is shared
    which was not before. The last batch of an epoch may have few samples: ``FILLERS`` alone would then have most of the
    events, and kernels whose programs take a sample would wait for theirs.

    Args:
        off_U1: int64 [U + 1] of the batch.
        history_of_B: int64 [B] of the batch.
        samples: B, or more.
        events: T, or more.
        piece: histories of fillers are multiples of so many events, but for one: the more of them there are, the more
            segments and tiles would otherwise be begun, and not all find room.
    """
    histories, present = len(off_U1) - 1, len(history_of_B)
    history = np.arange(samples + FILLERS)
    history[:present] = history_of_B
    history[present:samples] = np.arange(histories, histories + samples - present)
    fillers, missing = history[present:], events - int(off_U1[-1])
    most = -(-missing // (len(fillers) * piece)) * piece
    length = np.zeros(samples + FILLERS, np.int64)
    length[:histories] = off_U1[1:] - off_U1[:-1]
    # The last history has some if any has: surplus tiles are counted as its own.
    length[fillers[::-1]] = (missing - most * np.arange(len(fillers))).clip(0, most)
    return offsets(length), history


class FixedBatch:
    """A batch whose tensors stay where they are, with the rows of its ids and the layout of its segments.

    Args:
        batch: one that fits, in the loader's form, for dtypes and shapes.
        rows: of its distinct ids, by table.
        found: its segments, filled up to the room.
        room: sizes.
        numbers_of_ids: ``TableEmbeddings.numbers_of_ids``.
    """

    def __init__(
        self,
        batch: Batch,
        rows: dict[str, Tensor],
        found: Counted,
        room: Room,
        numbers_of_ids: Callable[[Batch], dict[str, list[int]]],
    ) -> None:
        assert batch.item_of_T is not None
        self.room, self.numbers_of_ids = room, numbers_of_ids
        device, samples = batch.row_B.device, room.samples + FILLERS
        lengths = found.lengths(room.capacity)
        self.index_length = index_length(lengths)
        # What comes from the host in every step: the layout, the number of the step, and, on a GPU, whence to copy.
        # All begins at multiples of 16 bytes.
        fields = (batch.items, batch.history, batch.target, batch.context, *numbers_of_ids(batch).values(), rows)
        sources = 4 + sum(map(len, fields))
        self.sent_I = torch.zeros(self.index_length + 2 + 2 * sources, dtype=torch.int64, device=device)
        self.staging = Staging(len(self.sent_I), device)
        self.parts = [index_parts(array, lengths) for array in self.staging.arrays]
        self.layout = SegmentLayout(self.sent_I[: self.index_length], lengths, found.sizes(room.capacity))
        parts = self.layout.parts
        self.batch = replace(
            batch,
            items={name: _fixed(ids, room.items) for name, ids in batch.items.items()},
            item_of_T=_fixed(batch.item_of_T, room.events),
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
            step=self.sent_I[self.index_length],  # type: ignore[arg-type]
            distinct={},
            place={},
            on_host=(torch.from_numpy(found.off_U1), torch.from_numpy(found.history_of_B)),
        )
        numbers = numbers_of_ids(self.batch)
        self.batch.place = {name: _fixed(place, sum(numbers[name])) for name, place in batch.place.items()}
        assert room.rows is not None
        self.rows = {name: _fixed(each.detach(), room.rows[name]).requires_grad_() for name, each in rows.items()}
        self.there = self._tensors(self.batch, self.rows)
        assert len(self.there) == sources
        self.copy = None
        if use_triton(self.sent_I):
            from laser.ops.address_copy.triton import AddressCopy

            self.copy = AddressCopy(self.there)

    def take_in(self, batch: Batch, rows: dict[str, Tensor], found: Counted) -> None:
        """Copy a batch that fits; on a GPU ``finish`` does so, for which batch and rows must still be there.

        Behind a smaller one come zeros, not what was there before: how sums are grouped depends on it.
        """
        turn = self.staging.next()
        array, here = self.staging.arrays[turn], self._tensors(batch, rows)
        found.write(self.parts[turn])
        array[self.index_length] = batch.step
        if self.copy is None:
            naive.copy(here, self.there)
        else:
            array[self.index_length + 2 :] = self.copy.sources(here)
        self.staging.send(self.sent_I)

    def finish(self) -> None:
        """What is left of ``take_in``, always the same call: part of what is recorded."""
        if self.copy is not None:
            self.copy(self.sent_I[self.index_length + 2 :])

    def _tensors(self, batch: Batch, rows: dict[str, Tensor]) -> list[Tensor]:
        """All that is copied of a batch, in an order of its own."""
        fixed, numbers = self.batch, self.numbers_of_ids(batch)
        assert batch.item_of_T is not None
        tensors = [batch.age_T, batch.row_B, batch.history_key_U, batch.item_of_T]
        for names, here in (
            (fixed.items, batch.items),
            (fixed.history, batch.history),
            (fixed.target, batch.target),
            (fixed.context, batch.context),
        ):
            tensors += [here[name] for name in names]
        for name in fixed.place:
            tensors += batch.place[name].split_with_sizes(numbers[name])
        return tensors + [rows[name] for name in self.rows]


def on_host(batch: Batch) -> tuple[Tensor, Tensor]:
    """Offsets and histories of a batch in host memory, or where they are."""
    return batch.on_host or (batch.off_U1, batch.history_of_B)


def _fixed(tensor: Tensor, count: int) -> Tensor:
    return tensor.new_zeros(count, *tensor.shape[1:])


def _grown(size: int) -> int:
    return int(size * GROWTH) + SLACK
