"""What a model returns.

Legend of shape suffixes: B samples; E events counted once per sample that sees them; H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Gates:
    """Gates of the segmented attention, for analysis.

    Args:
        gate_EH: one gate per event and head, in (0, 1); events of a sample oldest first, samples in batch order.
        event_off_B1: int64 offsets of the samples in ``gate_EH``.
        segment_width: events of a segment; segments are anchored at a sample's newest event.
        kind: "sigmoid", or "softmax" when these are weights that sum to 1 over a segment.
    """

    gate_EH: Tensor
    event_off_B1: Tensor
    segment_width: int
    kind: str


@dataclass(frozen=True)
class ModelOutput:
    """One forward pass.

    Args:
        logit_B: float32 logits.
        auxiliary_loss: float32 scalar to add to the task loss, already divided by the global batch size (summed over
            processes it is what one process would have), or ``None`` when the model has no such term.
        gates: when asked for.
    """

    logit_B: Tensor
    auxiliary_loss: Tensor | None = None
    gates: Gates | None = None
