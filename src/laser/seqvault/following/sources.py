"""Where events come from. A source is asked for what follows a position, and keeps none itself.

Kafka fits as well: a position is then the offset of each partition, and ``poll`` a consumer without a group that seeks.

Legend of shape suffixes: N events of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from laser.seqvault.layout import Layout


@dataclass(frozen=True)
class Batch:
    """Consecutive events of a source.

    Args:
        users: uint64 [N].
        events: per field N values.
        position: where the next batch begins; anything JSON can hold.
        produced: when the newest of them was produced, seconds since 1970; ``None`` when not known.
        rejected: what could not be read as an event, each with the reason.
    """

    users: np.ndarray
    events: Mapping[str, Any]
    position: Any
    produced: float | None = None
    rejected: list[dict[str, Any]] = field(default_factory=list)


class EventSource(Protocol):
    """Events in an order that does not change."""

    def poll(self, layout: Layout, position: Any, most: int, wait_seconds: float) -> Batch | None:
        """Up to ``most`` events after a position, or ``None`` when none come within ``wait_seconds``.

        Args:
            layout: fields of an event.
            position: of an earlier batch; ``None`` for the beginning.
            most: events.
            wait_seconds: how long to wait for the first.

        Raises:
            ValueError: when what follows the position is gone, or cannot be read.
            OSError: when the source does not answer at the moment.
        """
        ...

    def lag(self, position: Any) -> dict[str, float]:
        """Figures of how much lies behind a position."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...
