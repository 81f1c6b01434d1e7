"""What a baseline is: an encoder that turns a history and a target into a few vectors for the head.

Legend of shape suffixes: B samples; T history events, packed; D width; E width of the item's embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from laser.batch import Batch
from laser.model.costs import Form


@dataclass(frozen=True)
class Inputs:
    """What an encoder sees of a batch.

    Args:
        x_TD: event vectors, with recency embeddings, oldest first per history.
        target_BD: target vectors.
        item_TE: embeddings of the events' items and their side info, as looked up; only for encoders that say that
            they read them, as nothing else needs so large a tensor.
        item_BE: the same of the targets: these two are in one space from the start, which hashing needs.
        batch: offsets, ages, labels.
    """

    x_TD: Tensor
    target_BD: Tensor
    item_TE: Tensor | None
    item_BE: Tensor
    batch: Batch


@dataclass(frozen=True)
class Encoded:
    """What an encoder returns.

    Args:
        vectors: ``Encoder.vectors`` tensors [B, D].
        auxiliary_loss: scalar divided by the global batch size, in training only, or ``None``.
    """

    vectors: list[Tensor] = field(default_factory=list)
    auxiliary_loss: Tensor | None = None


class Encoder(nn.Module):
    """Base of all encoders. They are made with D and E.

    Users without history are legal: their vectors depend on the target alone. A sample's vectors depend on nothing
    else in its batch.
    """

    vectors: int = 1
    """Number of vectors that ``forward`` returns."""
    reads_items: bool = False
    """Whether ``forward`` reads ``Inputs.item_TE``."""

    def forward(self, inputs: Inputs) -> Encoded:
        """Vectors for the head."""
        raise NotImplementedError

    def macs(self, length: int, form: Form = "folded") -> int:
        """Multiply-accumulates of one sample with ``length`` events.

        "folded" is what the code computes. "paper" is the published form, which projects keys and values of every
        event and, in a stack of self-attention, computes every row even where only the target's is read.
        """
        raise NotImplementedError
