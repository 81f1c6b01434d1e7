"""Layer norm of a residual sum, LN(a + b): on CUDA one kernel forward and two backward, and no copy of the sum.

``naive`` is the specification. Off CUDA, in float64 and wherever a program is traced (``torch.export`` and AOTInductor
cannot take a launch of ours) it is PyTorch's ``layer_norm(a + b)``, to the bit; ``triton`` serves the rest.

Legend of shape suffixes: N rows, of any number of leading dimensions; D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm

from laser.ops.availability import use_triton

__all__ = ["residual_norm"]

WIDEST = 1024
"""D that a program holds in registers, for as many rows as fit; PyTorch serves what is wider."""
MOST_ROWS = 1 << 30
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def residual_norm(
    a_ND: Tensor, b_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float = 1e-5, *, widens: bool = True
) -> Tensor:
    """Layer norm of a + b over the last dimension, with weight and bias.

    On CUDA the sum and all statistics are float32 and only the result is rounded, which is closer to the truth than
    PyTorch's sum of two bfloat16, rounded first. Differentiable once there; equal inputs give equal bits, forward and
    backward.

    Args:
        a_ND: [..., D]; float32, bfloat16, float16 (Triton), or float64.
        b_ND: as ``a_ND``, in any of these dtypes. Both may have strides.
        weight_D: [D].
        bias_D: [D].
        eps: added to the variance.
        widens: under CUDA's autocast the result is float32, as PyTorch's norm is.

    Returns:
        [..., D] in the dtype of a + b, or as ``widens`` says.

    Raises:
        ValueError: when shapes do not fit each other.
    """
    # Traced first: comparing shapes would put guards into a program whose sizes are symbols.
    if torch.compiler.is_compiling():
        return _plain(a_ND, b_ND, weight_D, bias_D, eps, widens)
    if a_ND.shape != b_ND.shape or a_ND.shape[-1:] != weight_D.shape or weight_D.shape != bias_D.shape:
        shapes = [list(tensor.shape) for tensor in (a_ND, b_ND, weight_D, bias_D)]
        raise ValueError(f"the shapes are {shapes}; pass [..., D] twice, then [D] twice")
    if _serves(a_ND, b_ND, weight_D, bias_D):
        return FusedResidualNorm.apply(a_ND, b_ND, weight_D, bias_D, eps, widens)
    return _plain(a_ND, b_ND, weight_D, bias_D, eps, widens)


def _plain(a_ND: Tensor, b_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, widens: bool) -> Tensor:
    sum_ND = a_ND + b_ND
    y_ND = layer_norm(sum_ND, weight_D.shape, weight_D, bias_D, eps)
    return y_ND if widens else y_ND.to(sum_ND.dtype)


def _serves(a_ND: Tensor, *others: Tensor) -> bool:
    """Whether Triton takes these tensors."""
    D = a_ND.shape[-1]
    if not 0 < D <= WIDEST or a_ND.numel() // D > MOST_ROWS:
        return False
    return all(use_triton(tensor) and tensor.dtype in DTYPES for tensor in (a_ND, *others))


class FusedResidualNorm(torch.autograd.Function):
    """The Triton path; arguments as ``residual_norm``. Autocast changes the dtype of the result alone."""

    @staticmethod
    def forward(
        ctx: Any, a_ND: Tensor, b_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, widens: bool = True
    ) -> Tensor:
        """[..., D]. A row's mean and reciprocal deviation are kept; a and b are read again, they live anyway."""
        from laser.ops.residual_norm import triton

        dtype = torch.promote_types(a_ND.dtype, b_ND.dtype)
        dtype = torch.float32 if widens and torch.is_autocast_enabled("cuda") else dtype
        y_ND, mean_N, rstd_N = triton.forward(a_ND, b_ND, weight_D, bias_D, eps, dtype)
        ctx.save_for_backward(a_ND, b_ND, weight_D, mean_N, rstd_N)
        ctx.bias_dtype = bias_D.dtype
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_ND: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients, each in its input's dtype.

        Where a and b have one dtype both get the same tensor, as PyTorch's own addition gives: autograd adds in place
        only to what nothing else refers to.
        """
        from laser.ops.residual_norm import triton

        a_ND, b_ND, weight_D, mean_N, rstd_N = ctx.saved_tensors
        return *triton.backward(d_y_ND, a_ND, b_ND, weight_D, mean_N, rstd_N, ctx.bias_dtype), None, None
