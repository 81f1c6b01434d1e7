"""Linear layers whose backward pass is made for many rows and few columns: one, one per group, or some side by side.

On CUDA the gradient of a bias is summed by a kernel of ours, products over groups are written where they belong instead
of being copied there, and the gradient of small weights over many rows is a plain product, the rows of which cuBLAS
shares among programs, as it does not for a batched one. Products are PyTorch's, with its precision.

``naive`` is the specification. Off CUDA, in float64 and wherever a program is traced (``torch.export`` and AOTInductor
cannot take a launch of ours) all is PyTorch's, to the bit.

Legend of shape suffixes: N rows; H groups; I inputs; O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from laser.ops.availability import use_triton
from laser.ops.linear.functions import GroupedLinear, Linear, SideBySide

__all__ = ["as_autocast_would", "grouped_linear", "linear", "side_by_side"]

MOST_ROWS = 1 << 30
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    return Linear.apply(*as_autocast_would(x_NI, weight_OI, bias_O))


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
        return GroupedLinear.apply(*as_autocast_would(x_NHI, weight_HIO, bias_HO))
    if bias_HO is None:
        return torch.einsum("nhi,hio->nho", x_NHI, weight_HIO)
    return torch.baddbmm(bias_HO[:, None], x_NHI.transpose(0, 1), weight_HIO).transpose(0, 1)


def side_by_side(inputs: Sequence[Sequence[Tensor]], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Results of several layers, one after another along the last dimension; under autocast in its dtype.

    On CUDA all inputs are joined and cast together, and neighbours of equal sizes are one product, forward and
    backward. Differentiable once there; equal inputs give equal bits.

    Args:
        inputs: of each layer, as parts [N, J] whose widths J add up to I; float32, bfloat16, float16, or float64
            (PyTorch's).
        weights: of each layer, [O, I].
        biases: of each layer, [O].

    Returns:
        [N, sum of O].

    Raises:
        RuntimeError: PyTorch's, when shapes or dtypes do not fit each other.
    """
    parts = [part for parts in inputs for part in parts]
    if not _serves(*parts, *weights, *biases) or any(part.dim() != 2 for part in parts):
        layers = zip(inputs, weights, biases, strict=True)
        return torch.cat([functional.linear(torch.cat([*x], -1), *layer) for x, *layer in layers], -1)
    return SideBySide.apply(*as_autocast_would(torch.cat(parts, 1), *weights, *biases))


def _serves(x_NI: Tensor, *weights: Tensor | None) -> bool:
    """Whether our backward pass takes these tensors."""
    # Traced first: asking for sizes would put guards into a program whose sizes are symbols.
    if torch.compiler.is_compiling():
        return False
    tensors = [x_NI, *(weight for weight in weights if weight is not None)]
    if not all(use_triton(tensor) and tensor.dtype in DTYPES for tensor in tensors):
        return False
    return x_NI.numel() <= MOST_ROWS * max(1, x_NI.shape[-1])


def as_autocast_would(*tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors in autocast's dtype where it is on.

    Parameters are cast as they are, not a view of them: ``laser.model.half_copies`` looks for that.
    """
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]
