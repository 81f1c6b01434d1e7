"""Layer norm of mixed tokens and their own, in plain PyTorch: the specification.

Legend of shape suffixes: B samples; M tokens; D width.
"""

from __future__ import annotations

from torch import Tensor

from laser.ops.residual_norm.naive import residual_norm


def mix_tokens(x_BMD: Tensor) -> Tensor:
    """Token h of the result is the concatenation of the h-th of M slices of every token. Its own inverse."""
    B, M, D = x_BMD.shape
    return x_BMD.view(B, M, M, D // M).transpose(1, 2).reshape(B, M, D)


def mixed_norm(x_BMD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Layer norm of mix(x) + x in the dtype that x has; see the package for shapes and dtypes."""
    return residual_norm(mix_tokens(x_BMD), x_BMD, weight_D, bias_D, eps)
