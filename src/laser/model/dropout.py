"""Dropout without random state: the mask is a hash of where an element stands in the run (``laser.ops.keep_factor``).

The key is (seed, site, step, sample or history, position). A mask therefore does not depend on how samples are spread
over processes, on the order within a batch, or on what was drawn before; a resumed run needs no generator state.

Legend of shape suffixes: B samples; T history events, packed; M tokens; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser.ops.keep_factor import keep_factor
from laser.ops.keep_factor.naive import scalar_hash


class _HashedDropout(nn.Module):
    site: int

    def __init__(self, probability: float, seed: int = 0) -> None:
        super().__init__()
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"dropout probability is {probability}; expected a value in [0, 1), 0 to switch it off")
        self.probability = probability
        self.site_hash = scalar_hash(seed, self.site)

    @property
    def active(self) -> bool:
        return self.training and self.probability > 0.0

    def factor(self, step: int | Tensor, key_N: Tensor, position: Tensor | int, dtype: torch.dtype) -> Tensor:
        return keep_factor(self.probability, self.site_hash, step, key_N, position, dtype)

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


class EventDropout(_HashedDropout):
    """Drops whole events; the survivors are scaled by 1 / (1 - p). Identity in evaluation and for p = 0.

    The key is the history and the event's rank from the newest, so copies of a history lose the same events.
    """

    site = 1

    def forward(self, history_key_T: Tensor, rank_T: Tensor, step: int | Tensor) -> Tensor | None:
        """Float32 factor of each event: 0 where (step, history key, rank) hashes below p; ``None`` where all are 1."""
        return self.factor(step, history_key_T, rank_T, torch.float32) if self.active else None


class TokenDropout(_HashedDropout):
    """Drops single elements of the fusion tokens, keyed by the sample's row in its split and the position."""

    site = 2

    def forward(self, tokens_BMD: Tensor, row_B: Tensor, step: int | Tensor) -> Tensor:
        """Zero the elements of ``tokens_BMD`` whose (step, row, position) hashes below p."""
        if not self.active:
            return tokens_BMD
        elements = tokens_BMD.shape[1] * tokens_BMD.shape[2]
        return tokens_BMD * self.factor(step, row_B, elements, tokens_BMD.dtype).view_as(tokens_BMD)
