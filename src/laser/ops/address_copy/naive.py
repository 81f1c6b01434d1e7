"""Copies with zeros behind them, tensor after tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def copy(here: Sequence[Tensor], there: Sequence[Tensor]) -> None:
    """Copy each tensor to the beginning of its place, and fill what is left of that with zeros."""
    for source, place in zip(here, there, strict=True):
        place[: source.shape[0]].copy_(source)
        place[source.shape[0] :].zero_()
