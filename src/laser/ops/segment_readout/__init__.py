"""What fusion reads off the segments beside attention: their elementwise maximum and the newest few.

Three implementations, chosen by the device of ``seg_GD``: ``naive`` is the specification, ``cpu`` works in tiles (any
device), ``triton`` on CUDA reads every segment once.

Legend of shape suffixes: B samples; G segments, packed; R newest segments; D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from laser.ops.availability import use_triton
from laser.ops.segment_readout import cpu

__all__ = ["segment_readout"]


def segment_readout(seg_GD: Tensor, seg_off_B1: Tensor, newest: int) -> tuple[Tensor, Tensor]:
    """Elementwise maximum over each sample's segments, and its ``newest`` newest segments.

    Where a sample has no segment (or fewer than ``newest``), the answer is 0. Among equal maxima the gradient goes to
    the oldest. Differentiable once; equal inputs give equal bits, forward and backward.

    Args:
        seg_GD: [G, D] segments, packed by sample, oldest first; any floating dtype (float64 not in Triton).
        seg_off_B1: int64 [B + 1], where each sample's segments begin, and their number. Segments behind it belong to
            no sample; their gradient is 0.
        newest: R, at least 0.

    Returns:
        max_BD [B, D] and newest_BRD [B, R, D], the newest first, both in the dtype of ``seg_GD``.

    Raises:
        ValueError: when shapes or dtypes do not fit each other.
    """
    if seg_GD.dim() != 2 or seg_off_B1.dim() != 1 or len(seg_off_B1) == 0 or seg_off_B1.dtype != torch.int64:
        raise ValueError(
            f"seg_GD is {list(seg_GD.shape)} and seg_off_B1 is {seg_off_B1.dtype} {list(seg_off_B1.shape)}; pass "
            "[G, D] and torch.int64 [B + 1]"
        )
    if newest < 0:
        raise ValueError(f"newest is {newest}; pass how many of the newest segments to return, at least 0")
    max_BD, newest_BRD, _ = _forward(seg_GD, seg_off_B1, newest)
    return max_BD, newest_BRD


@torch.library.custom_op("laser::segment_readout", mutates_args=())
def _forward(seg_GD: Tensor, seg_off_B1: Tensor, newest: int) -> tuple[Tensor, Tensor, Tensor]:
    return _implementation(seg_GD).forward(seg_GD.contiguous(), seg_off_B1.contiguous(), newest)


@torch.library.custom_op("laser::segment_readout_backward", mutates_args=())
def _backward(d_max_BD: Tensor, d_newest_BRD: Tensor, row_BD: Tensor, seg_off_B1: Tensor, num_segments: int) -> Tensor:
    inputs = (d_max_BD.contiguous(), d_newest_BRD.contiguous(), row_BD.contiguous(), seg_off_B1.contiguous())
    return _implementation(d_max_BD).backward(*inputs, num_segments)


def _implementation(seg_GD: Tensor) -> Any:
    if not use_triton(seg_GD):
        return cpu
    from laser.ops.segment_readout import triton

    return triton


@_forward.register_fake
def _(seg_GD, seg_off_B1, newest):
    B, D = seg_off_B1.shape[0] - 1, seg_GD.shape[1]
    row_BD = seg_GD.new_empty(B, D, dtype=torch.int64)
    return seg_GD.new_empty(B, D), seg_GD.new_empty(B, newest, D), row_BD


@_backward.register_fake
def _(d_max_BD, d_newest_BRD, row_BD, seg_off_B1, num_segments):
    return d_max_BD.new_empty(num_segments, d_max_BD.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    seg_GD, seg_off_B1, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[2], seg_off_B1)
    ctx.num_segments = seg_GD.shape[0]


def _gradients(ctx: Any, d_max_BD: Tensor, d_newest_BRD: Tensor, _d_row: Tensor | None) -> tuple[Tensor | None, ...]:
    row_BD, seg_off_B1 = ctx.saved_tensors
    return _backward(d_max_BD, d_newest_BRD, row_BD, seg_off_B1, ctx.num_segments), None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)
