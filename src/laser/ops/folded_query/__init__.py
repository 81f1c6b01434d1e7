"""Queries of folded heads, scale (source W_Q) W_K^T: projected, and taken to where events can be scored as they are.

On CUDA in float32 it is one kernel forward, and backward one for the source's gradient; PyTorch multiplies for those of
weights. ``naive`` is the specification. Off CUDA, under autocast, in other dtypes, for other sizes than those below and
wherever a program is traced it is PyTorch's ``einsum`` and ``laser.ops.linear``.

Legend of shape suffixes: B samples; D width; H heads; Q query width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from laser.ops.availability import use_triton
from laser.ops.linear import grouped_linear
from laser.ops.linear.functions import weight_gradient

__all__ = ["folded_query"]

WIDTHS = (32, 64, 128)
"""D of which a program holds rows, and two blocks of float32 weights."""
NARROWEST = 16
"""Q: as tensor cores multiply."""
MOST_HEADS = 1 << 10


def folded_query(source_BD: Tensor, query_HDQ: Tensor, key_HDQ: Tensor, scale: float) -> Tensor:
    """Score vectors in event space: per head ``scale * (source W_Q) W_K^T``.

    On CUDA float32 has float32's precision, whatever the settings of TF32, but in the gradients of weights, which are
    PyTorch's products; differentiable once there. Equal inputs give equal bits, forward and backward.

    Args:
        source_BD: [B, D].
        query_HDQ: W_Q, of the same dtype.
        key_HDQ: W_K, likewise.
        scale: of the scores.

    Returns:
        [B, H, D].

    Raises:
        RuntimeError: PyTorch's, when shapes or dtypes do not fit each other.
    """
    if _serves(source_BD, query_HDQ, key_HDQ):
        return FoldedQuery.apply(source_BD, query_HDQ, key_HDQ, scale)
    query_BHQ = torch.einsum("bd,hdq->bhq", source_BD, query_HDQ)
    return grouped_linear(query_BHQ * scale, key_HDQ.transpose(1, 2))


def _serves(*tensors: Tensor) -> bool:
    """Whether Triton takes these tensors."""
    # Traced first: asking for sizes would put guards into a program whose sizes are symbols.
    if torch.compiler.is_compiling():
        return False
    source_BD, query_HDQ, key_HDQ = tensors
    if source_BD.dim() != 2 or query_HDQ.dim() != 3 or query_HDQ.shape != key_HDQ.shape:
        return False
    H, D, Q = query_HDQ.shape
    if D not in WIDTHS or source_BD.shape[1] != D or not 0 < H <= MOST_HEADS or Q < NARROWEST or Q & (Q - 1):
        return False
    if torch.is_autocast_enabled(source_BD.device.type):
        return False
    return all(tensor.dtype == torch.float32 and use_triton(tensor) for tensor in tensors)


class FoldedQuery(torch.autograd.Function):
    """The Triton path; arguments as of ``folded_query``."""

    @staticmethod
    def forward(ctx: Any, source_BD: Tensor, query_HDQ: Tensor, key_HDQ: Tensor, scale: float) -> Tensor:
        """[B, H, D]. What lies between the products is kept."""
        from laser.ops.folded_query import triton

        folded_BHD, scaled_BHQ = triton.forward(source_BD, query_HDQ, key_HDQ, scale)
        ctx.save_for_backward(source_BD, query_HDQ, key_HDQ, scaled_BHQ)
        ctx.scale = scale
        return folded_BHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_folded_BHD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of source and weights."""
        from laser.ops.folded_query import triton

        source_BD, query_HDQ, key_HDQ, scaled_BHQ = ctx.saved_tensors
        d_source_BD, d_query_BHQ = triton.backward(d_folded_BHD, query_HDQ, key_HDQ, ctx.scale)
        d_query_DHQ = (source_BD.t() @ d_query_BHQ.flatten(1)).view(-1, *d_query_BHQ.shape[1:])
        return d_source_BD, d_query_DHQ.transpose(0, 1), weight_gradient(d_folded_BHD, scaled_BHQ, key_HDQ), None
