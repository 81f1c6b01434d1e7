"""Dropout's factors by hashes instead of random numbers: 0, or 1 / (1 - p), as (site, step, key, position) say.

Two implementations, chosen by the device of ``key_N``: ``naive`` is the specification (any device), ``triton`` on CUDA
makes in one launch what takes PyTorch some thirty, each with 64-bit numbers of all elements.

Legend of shape suffixes: N rows; E elements of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laser.ops.availability import use_triton
from laser.ops.keep_factor import naive

__all__ = ["keep_factor"]


def keep_factor(
    probability: float, site: int, step: int | Tensor, key_N: Tensor, position: Tensor | int, dtype: torch.dtype
) -> Tensor:
    """Factor of each element; the bits that decide are the same on every device.

    Args:
        probability: of dropping, in [0, 1); resolved to 2^-32.
        site: hash of what the mask is for, signed 64 bits (``naive.scalar_hash``).
        step: of the training, or an int64 tensor of it without dimensions.
        key_N: int64 [N].
        position: int64 [N], a position of each row; or E, for the positions 0 ... E - 1 in every row.
        dtype: of the factors.

    Returns:
        [N], or [N, E]. No gradient.

    Raises:
        ValueError: when shapes or dtypes do not fit each other.
    """
    places = position.shape if isinstance(position, Tensor) else key_N.shape
    if key_N.dim() != 1 or key_N.dtype != torch.int64 or places != key_N.shape:
        raise ValueError(f"key_N is {key_N.dtype} {list(key_N.shape)}, position {list(places)}; pass torch.int64 [N]")
    if not use_triton(key_N):
        return naive.keep_factor(probability, site, step, key_N, position, dtype)
    from laser.ops.keep_factor import triton

    return triton.keep_factor(probability, site, step, key_N, position, dtype)
