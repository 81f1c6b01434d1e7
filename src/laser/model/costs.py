"""Arithmetic of LASER for one sample, by part, in the paper's unit and in ours.

The paper counts one operation per multiply-accumulate (MAC), as ``macs`` here; most others, and ``FlopCounterMode``,
count two, as ``flops``. "Paper form" projects keys and values of every event and segment, which is what reproduces
the published 4.0e7 (our inference from the published costs); "folded form" is what the code computes, the same
function for less. The projection of events is counted once an event; it is computed once a distinct id of the batch.
Counted are matrix products, as the paper does; look-ups, norms and activations are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from laser.model.laser import Laser
    from laser.model.sequence_model import SequenceModel

Form = Literal["paper", "folded"]
SHARED_PARTS = ("event_projection", "target_projection", "fusion", "mixer")
"""What every model has alike, and the paper's figure does not cover."""


@dataclass(frozen=True)
class Costs:
    """MACs of one sample by part."""

    parts: dict[str, int]

    @property
    def macs(self) -> int:
        """All parts."""
        return sum(self.parts.values())

    @property
    def flops(self) -> int:
        """Two operations per MAC."""
        return 2 * self.macs

    @property
    def sequence_macs(self) -> int:
        """The parts that the paper's figure covers, in its unit."""
        return sum(macs for part, macs in self.parts.items() if part not in SHARED_PARTS)


def sequence_costs(
    length: int,
    *,
    width: int = 128,
    segment_width: int = 10,
    num_heads: int = 2,
    query_width: int = 16,
    num_layers: int = 2,
    segment_ffn_multiple: int = 4,
    global_ffn_multiple: int = 4,
    form: Form = "folded",
) -> Costs:
    """MACs of the sequence part for one sample with ``length`` events; arguments as in ``Laser``.

    Without a history only the target's own projections remain.
    """
    d, q, segments = width, num_heads * query_width, -(-length // segment_width)
    if form == "paper":
        segmented = d * q + length * (d * q + d * d + q + d)
        attention = 2 * d * d + segments * (2 * d * d + 2 * d)
    else:
        segmented = 2 * d * q + length * 2 * num_heads * d + segments * d * d
        attention = 4 * d * d + segments * 2 * num_heads * d
    return Costs(
        {
            "segmented_attention": segmented,
            "segment_ffn": segments * 2 * segment_ffn_multiple * d * d,
            "global_attention": num_layers * attention,
            "global_ffn": num_layers * 2 * global_ffn_multiple * d * d,
        }
    )


def laser_costs(model: Laser, length: int, form: Form = "folded") -> Costs:
    """MACs of a whole model for one sample with ``length`` events, input projections, fusion and mixer included."""
    sta, gsta = model.sta, model.gsta
    width = model.event.out_features
    num_heads, _, query_width = sta.heads.query_HDQ.shape
    sequence = sequence_costs(
        length,
        width=width,
        segment_width=sta.segment_width,
        num_heads=num_heads,
        query_width=query_width,
        num_layers=len(gsta.layers),
        segment_ffn_multiple=sta.ffn_multiple,
        global_ffn_multiple=gsta.ffn_multiple,
        form=form,
    )
    if model.interest is not None:
        sequence = Costs(sequence.parts | {"evolution": model.interest.macs(min(length, model.newest_evolved))})
    return whole_costs(model, length, sequence)


def whole_costs(model: SequenceModel, length: int, sequence: Costs) -> Costs:
    """The given sequence part of a model, with the parts that all models share."""
    fusion = sum(p.numel() for p in model.get_submodule("fusion").parameters() if p.dim() == 2)
    # One MAC per weight and sample: 3-D ones are products per token (the unused router not), matrices those of Linears.
    mixer = sum(
        p.numel()
        for name, p in model.mixer.named_parameters()
        if (p.dim() == 3 and "dense_router" not in name) or (p.dim() == 2 and name.endswith(".weight"))
    )
    return Costs(
        {
            "event_projection": length * model.event.weight.numel(),
            "target_projection": model.target.weight.numel(),
            **sequence.parts,
            "fusion": fusion,
            "mixer": mixer + model.logit.weight.numel(),
        }
    )
