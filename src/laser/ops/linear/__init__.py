"""Linear layers whose backward pass is made for many rows and few columns: one layer, or one per group of the inputs.

On CUDA the gradient of a bias is summed by a kernel of ours, products over groups are written where they belong instead
of being copied there, and the gradient of small weights over many rows is a plain product, the rows of which cuBLAS
shares among programs, as it does not for a batched one. Products are PyTorch's, with its precision.

``naive`` is the specification. Off CUDA, in float64 and wherever a program is traced (``torch.export`` and AOTInductor
cannot take a launch of ours) all is PyTorch's, to the bit.

Legend of shape suffixes: N rows; H groups; I inputs; O outputs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from laser.ops.availability import use_triton

__all__ = ["grouped_linear", "linear"]

MOST_ROWS = 1 << 30
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEW_TILES, TILE, MOST_GROUPS = 32, 64, 8
"""A batched product of so few tiles leaves most of a GPU idle, whatever the number of rows. The plain product has the
tiles of all pairs of groups, of which those of a group with itself are taken: as many times the work as groups."""


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b, as ``torch.nn.functional.linear``, under autocast in its dtype.

    On CUDA differentiable once; equal inputs give equal bits, forward and backward.

    Args:
        x_NI: [..., I]; float32, bfloat16, float16, or float64 (PyTorch's).
        weight_OI: [O, I], of the same dtype unless autocast makes it so.
        bias_O: [O], likewise.

    Returns:
        [..., O].

    Raises:
        RuntimeError: PyTorch's, when shapes or dtypes do not fit each other.
    """
    if not _serves(x_NI, weight_OI, bias_O):
        return functional.linear(x_NI, weight_OI, bias_O)
    return Linear.apply(*_as_autocast_would(x_NI, weight_OI, bias_O))


def grouped_linear(x_NHI: Tensor, weight_HIO: Tensor, bias_HO: Tensor | None = None) -> Tensor:
    """x_h W_h + b_h for each group h, under autocast in its dtype.

    On CUDA differentiable once; equal inputs give equal bits, forward and backward. The result is contiguous there
    without a bias; with one, its rows lie group by group.

    Args:
        x_NHI: [N, H, I]; float32, bfloat16, float16, or float64 (PyTorch's). Any strides.
        weight_HIO: [H, I, O], of the same dtype unless autocast makes it so. Any strides; its gradient has them, too.
        bias_HO: [H, O], likewise.

    Returns:
        [N, H, O].

    Raises:
        RuntimeError: PyTorch's, when shapes or dtypes do not fit each other.
    """
    if _serves(x_NHI, weight_HIO, bias_HO):
        return GroupedLinear.apply(*_as_autocast_would(x_NHI, weight_HIO, bias_HO))
    if bias_HO is None:
        return torch.einsum("nhi,hio->nho", x_NHI, weight_HIO)
    return torch.baddbmm(bias_HO[:, None], x_NHI.transpose(0, 1), weight_HIO).transpose(0, 1)


def _serves(x_NI: Tensor, *weights: Tensor | None) -> bool:
    """Whether our backward pass takes these tensors."""
    # Traced first: asking for sizes would put guards into a program whose sizes are symbols.
    if torch.compiler.is_compiling():
        return False
    tensors = [x_NI, *(weight for weight in weights if weight is not None)]
    if not all(use_triton(tensor) and tensor.dtype in DTYPES for tensor in tensors):
        return False
    return x_NI.numel() <= MOST_ROWS * max(1, x_NI.shape[-1])


def _as_autocast_would(*tensors: Tensor | None) -> list[Tensor | None]:
    """In autocast's dtype where it is on.

    Parameters are cast as they are, not a view of them: ``laser.model.half_copies`` looks for that.
    """
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def _rows(x_NI: Tensor) -> Tensor:
    """As a matrix, also where there is nothing in it."""
    return x_NI.reshape(math.prod(x_NI.shape[:-1]), x_NI.shape[-1])


def _column_sum(x_HNO: Tensor) -> Tensor:
    from laser.ops.linear import triton

    return triton.column_sum(x_HNO)


class Linear(torch.autograd.Function):
    """PyTorch's layer with our gradient of the bias; arguments as ``linear``."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """[..., O]."""
        ctx.save_for_backward(x_NI, weight_OI)
        return functional.linear(x_NI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_NO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of what needs one, in its dtype; that of the weight is contiguous."""
        x_NI, weight_OI = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        d_y_RO = _rows(d_y_NO)
        return (
            (d_y_RO @ weight_OI).view(x_NI.shape) if of_x else None,
            d_y_RO.t() @ _rows(x_NI) if of_weight else None,
            _column_sum(d_y_RO[None])[0] if of_bias else None,
        )


class GroupedLinear(torch.autograd.Function):
    """A layer per group; arguments as ``grouped_linear``."""

    @staticmethod
    def forward(ctx: Any, x_NHI: Tensor, weight_HIO: Tensor, bias_HO: Tensor | None) -> Tensor:
        """[N, H, O]."""
        ctx.save_for_backward(x_NHI, weight_HIO)
        if bias_HO is not None:
            return torch.baddbmm(bias_HO[:, None], x_NHI.transpose(0, 1), weight_HIO).transpose(0, 1)
        y_NHO = x_NHI.new_empty(*x_NHI.shape[:2], weight_HIO.shape[2])
        torch.bmm(x_NHI.transpose(0, 1), weight_HIO, out=y_NHO.transpose(0, 1))
        return y_NHO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_NHO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of what needs one, in its dtype, and with its strides unless it overlaps."""
        x_NHI, weight_HIO = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        d_x_NHI = None
        if of_x:
            d_x_NHI = torch.empty_like(x_NHI)
            torch.bmm(d_y_NHO.transpose(0, 1), weight_HIO.transpose(1, 2), out=d_x_NHI.transpose(0, 1))
        return (
            d_x_NHI,
            _weight_gradient(x_NHI, d_y_NHO, weight_HIO) if of_weight else None,
            _column_sum(d_y_NHO.transpose(0, 1)) if of_bias else None,
        )


def _weight_gradient(x_NHI: Tensor, d_y_NHO: Tensor, weight_HIO: Tensor) -> Tensor:
    """x_h^T d_y_h for each group, with the strides of the weight."""
    H, I, O = weight_HIO.shape
    d_weight_HIO = torch.empty_like(weight_HIO)
    tiles = H * -(-I // TILE) * -(-O // TILE)
    if H <= MOST_GROUPS and tiles <= FEW_TILES and x_NHI.is_contiguous() and d_y_NHO.is_contiguous():
        pairs_HIHO = (x_NHI.flatten(1).t() @ d_y_NHO.flatten(1)).view(H, I, H, O)
        return d_weight_HIO.copy_(pairs_HIHO.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
    return torch.bmm(x_NHI.permute(1, 2, 0), d_y_NHO.transpose(0, 1), out=d_weight_HIO)
