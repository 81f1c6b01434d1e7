"""RankMixer's layer norm of mixed tokens and their own, LN(mix(x) + x): one kernel forward and two backward on CUDA.

Nothing is mixed in memory: a program reads its samples twice, the second time from the cache, and backward it mixes the
gradient in registers.

``naive`` is the specification. What Triton does not serve (off CUDA, float64, traced programs, samples too large or of
other sizes than powers of two) is ``residual_norm`` of a mixed copy.

Legend of shape suffixes: B samples; M tokens; D width; N rows, all tokens of all samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from laser.ops.availability import use_triton
from laser.ops.mixed_norm.naive import mix_tokens
from laser.ops.residual_norm import DTYPES, MOST_ROWS, WIDEST, residual_norm

__all__ = ["mix_tokens", "mixed_norm"]

LARGEST = 1 << 13
"""M D: a program holds a sample in registers."""


def mixed_norm(x_BMD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float = 1e-5, *, widens: bool = True) -> Tensor:
    """Layer norm of mix(x) + x over the last dimension, with weight and bias; dtypes as of ``residual_norm``.

    On CUDA differentiable once; equal inputs give equal bits, forward and backward.

    Args:
        x_BMD: [B, M, D], D a multiple of M; may have strides.
        weight_D: [D].
        bias_D: [D].
        eps: added to the variance.
        widens: under CUDA's autocast the result is float32, as PyTorch's norm is.

    Returns:
        [B, M, D] in the dtype of x, or as ``widens`` says.

    Raises:
        ValueError: when weight and bias do not fit x.
        RuntimeError: PyTorch's, when tokens cannot be cut into so many slices.
    """
    # Traced first: comparing shapes would put guards into a program whose sizes are symbols.
    if not torch.compiler.is_compiling() and _serves(x_BMD, weight_D, bias_D):
        return FusedMixedNorm.apply(x_BMD, weight_D, bias_D, eps, widens)
    return residual_norm(mix_tokens(x_BMD), x_BMD, weight_D, bias_D, eps, widens=widens)


def _serves(x_BMD: Tensor, weight_D: Tensor, bias_D: Tensor) -> bool:
    """Whether Triton takes these tensors. Others may be a mistake, which the other path names."""
    _, M, D = x_BMD.shape
    fits = weight_D.shape == bias_D.shape == (D,) and D <= WIDEST and M * D <= LARGEST
    if not (fits and _is_power_of_two(M) and _is_power_of_two(D) and M <= D and x_BMD.shape[0] * M <= MOST_ROWS):
        return False
    return all(use_triton(tensor) and tensor.dtype in DTYPES for tensor in (x_BMD, weight_D, bias_D))


def _is_power_of_two(number: int) -> bool:
    return number.bit_count() == 1


class FusedMixedNorm(torch.autograd.Function):
    """The Triton path; arguments as ``mixed_norm``. Autocast changes the dtype of the result alone."""

    @staticmethod
    def forward(ctx: Any, x_BMD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, widens: bool = True) -> Tensor:
        """[B, M, D]. A row's mean and reciprocal deviation are kept; x is read again, it lives anyway."""
        from laser.ops.mixed_norm import triton

        dtype = torch.float32 if widens and torch.is_autocast_enabled("cuda") else x_BMD.dtype
        y_BMD, mean_N, rstd_N = triton.forward(x_BMD, weight_D, bias_D, eps, dtype)
        ctx.save_for_backward(x_BMD, weight_D, mean_N, rstd_N)
        ctx.bias_dtype = bias_D.dtype
        return y_BMD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_BMD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients, each in its input's dtype."""
        from laser.ops.mixed_norm import triton

        x_BMD, weight_D, mean_N, rstd_N = ctx.saved_tensors
        return *triton.backward(d_y_BMD, x_BMD, weight_D, mean_N, rstd_N, ctx.bias_dtype), None, None
