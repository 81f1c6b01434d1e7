# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""Maximum and newest segments in Triton: a program takes one sample, and reads or writes every segment once.

Legend of shape suffixes: B samples; G segments, packed (in kernels: of one tile); R newest segments; D width.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from laser.ops.spare_rows import zero_spare_rows


@triton.jit(do_not_specialize=["num_segments"])
def forward_kernel(
    seg_GD,
    seg_off_B1,
    max_BD,
    newest_BRD,
    row_BD,
    num_segments,
    R: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Maximum of one sample's segments, its row, and the newest segments."""
    sample = tl.program_id(0).to(tl.int64)
    start = tl.load(seg_off_B1 + sample)
    end = tl.load(seg_off_B1 + sample + 1)
    length = (end - start).to(tl.int32)
    g_G = tl.arange(0, BLOCK_G)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    top_GD = tl.full((BLOCK_G, BLOCK_D), float("-inf"), tl.float32)
    place_GD = tl.full((BLOCK_G, BLOCK_D), 0, tl.int32) + length
    for first in range(0, length, BLOCK_G):
        event_G = first + g_G
        mask_GD = (event_G < length)[:, None] & in_D[None, :]
        seg_at = seg_GD + (start + event_G)[:, None] * D + d_D[None, :]
        seg = tl.load(seg_at, mask=mask_GD, other=float("-inf")).to(tl.float32)
        place_GD = tl.where(seg > top_GD, event_G[:, None], place_GD)
        top_GD = tl.maximum(top_GD, seg)
    top_D = tl.max(top_GD, axis=0)
    # The oldest of equal maxima: each slot holds its own oldest, a slot that saw none holds length.
    place_D = tl.min(tl.where(top_GD == top_D[None, :], place_GD, length), axis=0)
    some_D = place_D < length
    tl.store(max_BD + sample * D + d_D, tl.where(some_D, top_D, 0.0).to(max_BD.dtype.element_ty), mask=in_D)
    tl.store(row_BD + sample * D + d_D, tl.where(some_D, start + place_D, num_segments), mask=in_D)
    for r in tl.static_range(R):
        row = end - 1 - r
        newest_D = tl.load(seg_GD + row * D + d_D, mask=d_D < tl.where(row >= start, D, 0), other=0.0)
        tl.store(newest_BRD + (sample * R + r) * D + d_D, newest_D, mask=in_D)


@triton.jit
def backward_kernel(
    d_max_BD,
    d_newest_BRD,
    row_BD,
    seg_off_B1,
    d_seg_GD,
    R: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Gradient of one sample's segments."""
    sample = tl.program_id(0).to(tl.int64)
    start = tl.load(seg_off_B1 + sample)
    end = tl.load(seg_off_B1 + sample + 1)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    row_of_max_D = tl.load(row_BD + sample * D + d_D, mask=in_D, other=-1)
    d_max_D = tl.load(d_max_BD + sample * D + d_D, mask=in_D, other=0.0).to(tl.float32)
    for first in range(0, (end - start).to(tl.int32), BLOCK_G):
        row_G = start + first + tl.arange(0, BLOCK_G)
        mask_GD = (row_G < end)[:, None] & in_D[None, :]
        d_seg = tl.where(row_G[:, None] == row_of_max_D[None, :], d_max_D[None, :], 0.0)
        from_newest_G = end - 1 - row_G
        newest_at = d_newest_BRD + (sample * R + from_newest_G)[:, None] * D + d_D[None, :]
        d_seg += tl.load(newest_at, mask=mask_GD & (from_newest_G < R)[:, None], other=0.0).to(tl.float32)
        tl.store(d_seg_GD + row_G[:, None] * D + d_D[None, :], d_seg.to(d_seg_GD.dtype.element_ty), mask=mask_GD)


def config(D: int) -> dict[str, int]:
    """Tile and launch of both kernels."""
    block_d = int(triton.next_power_of_2(D))
    return {"BLOCK_D": block_d, "BLOCK_G": max(1, min(16, 2048 // block_d)), "num_warps": 2}


def forward(seg_GD: Tensor, seg_off_B1: Tensor, newest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum [B, D], newest segments [B, R, D], and the row of each maximum [B, D] (G where there is none)."""
    B, (G, D) = len(seg_off_B1) - 1, seg_GD.shape
    max_BD = seg_GD.new_empty(B, D)
    newest_BRD = seg_GD.new_empty(B, newest, D)
    row_BD = seg_off_B1.new_empty(B, D)
    if B:
        launch: Any = forward_kernel[(B,)]
        launch(seg_GD, seg_off_B1, max_BD, newest_BRD, row_BD, G, R=newest, D=D, **config(D))
    return max_BD, newest_BRD, row_BD


def backward(d_max_BD: Tensor, d_newest_BRD: Tensor, row_BD: Tensor, seg_off_B1: Tensor, num_segments: int) -> Tensor:
    """Gradient of the segments [G, D]; inputs contiguous."""
    B, D = d_max_BD.shape
    d_seg_GD = zero_spare_rows(d_max_BD.new_empty(num_segments, D), seg_off_B1)
    if B:
        launch: Any = backward_kernel[(B,)]
        launch(d_max_BD, d_newest_BRD, row_BD, seg_off_B1, d_seg_GD, R=d_newest_BRD.shape[1], D=D, **config(D))
    return d_seg_GD
