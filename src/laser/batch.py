"""One training batch: jagged histories, the samples that point into them, and their labels.

Legend of shape suffixes: B samples; U distinct histories (one per user and time); T history events, packed; I distinct
items of all histories; K values of a multi-valued feature.

Three samples of two distinct histories, of 2 and 3 events, oldest event first::

    history["action"] [ p  q | q  q  p ]      T = 5
    item_of_T         [ 1  0 | 1  2  1 ]
    items["item"]     [ a, b, c ]             I = 3
    items["genre"]    [ f, g, f ]
    off_U1            [ 0      2        5 ]   U + 1 offsets
    history_of_B      [ 0, 1, 1 ]             samples 1 and 2 share a history
    target["item"]    [ x, y, z ]             B = 3

What is known about an item is the same in all of its events, so it is there once an item, not once an event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Batch:
    """Tensors of one step on one device.

    Invariants: ``off_U1[0] == 0``, ``off_U1[-1] == T``, offsets do not fall; ``0 <= history_of_B < U``;
    ``0 <= item_of_T < I``; every id is in ``[0, cardinality)``; ``age_T > 0`` (an event at the sample's own time is not
    history). B, U, T and I may be 0.
    """

    history: dict[str, Tensor]
    """Per history field integer ids, [T] or [T, K]: event side info, and all about the items when ``items`` is empty.
    The loader's are int32 up to a cardinality of 2^31."""
    off_U1: Tensor
    """int64 offsets of the histories, [U + 1]."""
    age_T: Tensor
    """float32 seconds from the event to the sample."""
    history_of_B: Tensor
    """int64 index of each sample's history."""
    target: dict[str, Tensor]
    """Per target field int64 ids, [B] or [B, K]: item, item side info."""
    context: dict[str, Tensor]
    """Per context field int64 ids, [B] or [B, K]."""
    label_B: Tensor
    """float32, 0 or 1."""
    user_B: Tensor
    """int64 user codes, for per-user metrics and predictions."""
    timestamp_B: Tensor
    """int64 ticks of the schema's unit."""
    row_B: Tensor
    """int64 position of the sample in its split: the key of predictions, and of dropout masks that do not depend on
    how samples are spread over processes."""
    history_key_U: Tensor
    """int64 hash of (user, time): the same for the same history on any process."""
    step: int
    """Position of this batch in the run (epochs times batches an epoch, plus position)."""
    global_size: int
    """Samples of this step over all processes; the loss is a mean over them."""
    items: dict[str, Tensor] = field(default_factory=dict)
    """Per item field int64 ids, [I] or [I, K]: item, item side info. Empty: the history has them, event by event."""
    item_of_T: Tensor | None = None
    """int32 index of each event's item; ``None`` when ``items`` is empty."""
    distinct: dict[str, Tensor] = field(default_factory=dict)
    """Per table int64 ids that the batch looks up, each once, ascending. Empty: the model finds them itself."""
    place: dict[str, Tensor] = field(default_factory=dict)
    """Per table int32 positions in ``distinct`` of all its ids: fields of items, history, target, context, in schema
    order, each flattened."""
    on_host: tuple[Tensor, Tensor] | None = None
    """``off_U1`` and ``history_of_B`` in host memory, where ``to`` left them: sizes are read there without waiting for
    a device."""
    distinct_on_host: dict[str, Tensor] = field(default_factory=dict)
    """``distinct`` in host memory likewise."""

    def __len__(self) -> int:
        return self.label_B.shape[0]

    @property
    def num_histories(self) -> int:
        """U."""
        return self.off_U1.shape[0] - 1

    def event_ids(self, name: str) -> Tensor:
        """Ids of any history field, event by event, [T] or [T, K]."""
        if self.item_of_T is None or name not in self.items:
            return self.history[name]
        return self.items[name][self.item_of_T]

    def by_event(self) -> Batch:
        """The same batch with all fields event by event and without distinct ids, for a choice of its events."""
        history = {name: self.event_ids(name) for name in (*self.items, *self.history)}
        return replace(self, history=history, items={}, item_of_T=None, distinct={}, place={}, distinct_on_host={})

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """A batch with ``function`` applied to every tensor."""
        changes: dict[str, Any] = {}
        for part in (part for part in fields(self) if part.name != "distinct_on_host"):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                changes[part.name] = function(value)
            elif isinstance(value, dict):
                changes[part.name] = {name: function(tensor) for name, tensor in value.items()}
        return replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Copy to a device."""
        moved = self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(
            moved,
            on_host=self.on_host or (self.off_U1, self.history_of_B),
            distinct_on_host=self.distinct_on_host or self.distinct,
        )

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the caching allocator that ``stream`` uses these tensors."""
        memories: dict[int, Tensor] = {}
        self.map(lambda tensor: memories.setdefault(tensor.untyped_storage().data_ptr(), tensor))
        for tensor in memories.values():
            tensor.record_stream(stream)
