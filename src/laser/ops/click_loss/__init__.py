"""Binary cross-entropy of logits, summed and divided: what training makes small.

Two implementations, chosen by the device: ``naive`` is the specification (any device), ``triton`` on CUDA finds loss
and gradient in one launch, where PyTorch takes a dozen in both passes.

Legend of shape suffixes: B samples.
"""

from __future__ import annotations

from torch import Tensor

from laser.ops.availability import use_triton
from laser.ops.click_loss import naive

__all__ = ["click_loss"]

MOST = 1 << 14
"""Samples that one program goes through; more are left to PyTorch."""


def click_loss(logit_B: Tensor, label_B: Tensor, size: int) -> Tensor:
    """Sum of the binary cross-entropies, divided by ``size``.

    Args:
        logit_B: float32.
        label_B: float32, 0 or 1.
        size: number above 0.

    Returns:
        Float32 scalar.
    """
    if not (use_triton(logit_B) and 0 < len(logit_B) <= MOST):
        return naive.click_loss(logit_B, label_B, size)
    from laser.ops.click_loss import triton

    return triton.click_loss(logit_B, label_B, size)
