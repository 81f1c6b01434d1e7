"""Mean of the newest events of each history, without a copy of them and without a gradient over all events of its own.

The events are handed on: whoever uses the returned ones puts its gradient through this op, which adds the mean's share
to the newest rows. So there is one gradient of size [T, D] where two were made and added up.

Two implementations: ``naive`` is the specification and serves whatever ``joins_gradients`` is not true of, ``triton``
the rest, on CUDA.

Legend of shape suffixes: U distinct histories; T history events, packed; D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from laser.ops.availability import use_triton
from laser.ops.newest_mean import naive

__all__ = ["joins_gradients", "newest_mean"]


def newest_mean(x_TD: Tensor, off_U1: Tensor, newest: int, *, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """The events themselves, and the mean over the ``newest`` newest events of each history.

    Use the returned x_TD from then on: the gradients of all its uses and of the mean then leave as one,
    d_x = d_x of the others + d_mean[u] / min(length of u, newest) in the newest rows of each history u. The op is right
    without that, too, but then PyTorch adds up two gradients of size [T, D].

    In Triton sums are float32, rounded once, and the op is differentiable once. Equal inputs give equal bits, forward
    and backward.

    Args:
        x_TD: [T, D] events, packed by history, oldest first; any floating dtype (float64 not in Triton).
        off_U1: int64 [U + 1], where each history begins, and their end. Events behind it belong to no history.
        newest: at least 1.
        in_place: Triton adds to the gradient that comes in, instead of to a copy of it. A promise that nothing else
            holds that gradient, such as a hook, or an op that hands on its own gradient as that of two inputs.

    Returns:
        x_TD (in Triton a view, not to be changed in place), and mean_UD [U, D], 0 for a history without events, in the
        dtype of ``x_TD``; in float32 under autocast on CUDA, where sums are.

    Raises:
        ValueError: when shapes or dtypes do not fit each other.
    """
    if x_TD.dim() != 2 or off_U1.dim() != 1 or len(off_U1) == 0 or off_U1.dtype != torch.int64:
        raise ValueError(
            f"x_TD is {list(x_TD.shape)} and off_U1 is {off_U1.dtype} {list(off_U1.shape)}; pass [T, D] and "
            "torch.int64 [U + 1]"
        )
    if newest < 1:
        raise ValueError(f"newest is {newest}; pass how many of the newest events to average, at least 1")
    if not joins_gradients(x_TD):
        return naive.newest_mean(x_TD, off_U1, newest)
    # As PyTorch's own sum would have it: under autocast on CUDA it is float32.
    dtype = torch.float32 if torch.is_autocast_enabled("cuda") else x_TD.dtype
    return NewestMean.apply(x_TD, off_U1, newest, dtype, in_place)  # type: ignore[return-value]


def joins_gradients(x_TD: Tensor) -> bool:
    """Whether the mean's gradient is added to that of the returned events here, not by PyTorch in an order of its own.

    A compiler can look into plain PyTorch alone.
    """
    return not torch.compiler.is_compiling() and use_triton(x_TD)


class NewestMean(torch.autograd.Function):
    """The op over the kernels of ``triton``. A custom op could not return its input, so it is none."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, off_U1: Tensor, newest: int, dtype: torch.dtype, in_place: bool
    ) -> tuple[Tensor, Tensor]:
        """A view of the events, and mean_UD in ``dtype``."""
        from laser.ops.newest_mean import triton

        off_U1 = off_U1.contiguous()
        ctx.save_for_backward(off_U1)
        ctx.newest, ctx.shape, ctx.dtype, ctx.in_place = newest, x_TD.shape, x_TD.dtype, in_place
        # An output that nobody used has the gradient None, not a tensor of zeros.
        ctx.set_materialize_grads(False)
        return x_TD.view_as(x_TD), triton.forward(x_TD.contiguous(), off_U1, newest, dtype)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, d_x_TD: Tensor | None, d_mean_UD: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The events' gradient, in memory of its own unless it was promised that what comes in is no one else's."""
        from laser.ops.newest_mean import triton

        if d_mean_UD is None:
            return d_x_TD, None, None, None, None
        (off_U1,) = ctx.saved_tensors
        if d_x_TD is None:
            d_joined_TD = off_U1.new_zeros(ctx.shape, dtype=ctx.dtype)
        elif ctx.in_place and d_x_TD.is_contiguous():
            d_joined_TD = d_x_TD
        else:
            # The gradient that came in may be another's, too. It need not be contiguous; the kernel's rows are.
            d_joined_TD = d_x_TD.clone(memory_format=torch.contiguous_format)
        triton.add_gradient(d_joined_TD, d_mean_UD.contiguous(), off_U1, ctx.newest)
        return d_joined_TD, None, None, None, None
