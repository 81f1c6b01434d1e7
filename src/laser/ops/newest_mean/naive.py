"""Mean of the newest events of each history, in plain PyTorch: the specification.

Legend of shape suffixes: U distinct histories; T history events, packed; N newest events; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def newest_mean(x_TD: Tensor, off_U1: Tensor, newest: int) -> tuple[Tensor, Tensor]:
    """The events as they are, and the mean of each history's newest; see the package for shapes and dtypes."""
    length_U = off_U1.diff()
    if x_TD.shape[0] == 0:
        # A sum of nothing, not plain zeros: a process without events must still hand on gradients.
        return x_TD, x_TD.sum(0).expand(length_U.shape[0], -1)
    rank_N = torch.arange(newest, device=x_TD.device)
    within_UN = rank_N < length_U[:, None]
    index_UN = torch.where(within_UN, off_U1[1:, None] - 1 - rank_N, 0)
    # index_select, not indexing: its backward pass adds rows without sorting, and here only zeros share a row.
    x_UND = x_TD.index_select(0, index_UN.flatten()).view(*index_UN.shape, x_TD.shape[1])
    x_UND = x_UND * within_UN.to(x_TD.dtype)[..., None]
    return x_TD, x_UND.sum(1) / length_U.clamp(1, newest).to(x_TD.dtype)[:, None]
