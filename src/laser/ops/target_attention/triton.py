# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
# ruff: noqa: RUF005  (Triton concatenates tuples, it does not unpack them)
"""Target attention in Triton: a program takes one sample and reads its segments once, forward and backward.

Forward: an online softmax in every row slot of the tile, merged at the end, so that no step of the loop reduces over
rows. Backward: a segment belongs to one sample, so nothing is shared, and there are no atomics. Sums are float32.

Legend of shape suffixes: B samples; G segments, packed (in kernels: of one tile); H heads; D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from laser.ops.spare_rows import zero_spare_rows
from laser.ops.target_attention import tensor_cores


@triton.jit
def forward_kernel(
    query_BHD,
    seg_GD,
    seg_off_B1,
    pooled_BHD,
    lse_BH,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Mean and logarithm of the sum of exponentials of one sample."""
    sample = tl.program_id(0).to(tl.int64)
    start = tl.load(seg_off_B1 + sample)
    length = (tl.load(seg_off_B1 + sample + 1) - start).to(tl.int32)
    g_G = tl.arange(0, BLOCK_G)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    query = ()
    top = ()
    total = ()
    pooled = ()
    for h in tl.static_range(H):
        query_D = tl.load(query_BHD + (sample * H + h) * D + d_D, mask=in_D, other=0.0)
        query = query + (query_D.to(tl.float32)[None, :],)
        top = top + (tl.full((BLOCK_G,), float("-inf"), tl.float32),)
        total = total + (tl.zeros((BLOCK_G,), tl.float32),)
        pooled = pooled + (tl.zeros((BLOCK_G, BLOCK_D), tl.float32),)
    for first in tl.range(0, length, BLOCK_G, num_stages=STAGES):
        live_G = first + g_G < length
        seg_at = seg_GD + (start + first + g_G)[:, None] * D + d_D[None, :]
        seg = tl.load(seg_at, mask=live_G[:, None] & in_D[None, :], other=0.0).to(tl.float32)
        next_top = ()
        next_total = ()
        next_pooled = ()
        for h in tl.static_range(H):
            score_G = tl.where(live_G, tl.sum(seg * query[h], axis=1), float("-inf"))
            top_G = tl.maximum(top[h], score_G)
            # A slot past the end keeps what it has: its -inf minus -inf is discarded here.
            scale_G = tl.where(live_G, tl.exp(top[h] - top_G), 1.0)
            weight_G = tl.where(live_G, tl.exp(score_G - top_G), 0.0)
            next_top = next_top + (top_G,)
            next_total = next_total + (total[h] * scale_G + weight_G,)
            next_pooled = next_pooled + (pooled[h] * scale_G[:, None] + weight_G[:, None] * seg,)
        top = next_top
        total = next_total
        pooled = next_pooled
    for h in tl.static_range(H):
        largest = tl.max(top[h], axis=0)
        scale_G = tl.where(total[h] > 0, tl.exp(top[h] - largest), 0.0)
        sum_h = tl.sum(total[h] * scale_G, axis=0)
        pooled_D = tl.sum(pooled[h] * scale_G[:, None], axis=0)
        pooled_D = tl.where(sum_h > 0, pooled_D / tl.where(sum_h > 0, sum_h, 1.0), 0.0)
        lse = tl.where(sum_h > 0, largest + tl.log(tl.where(sum_h > 0, sum_h, 1.0)), 0.0)
        tl.store(pooled_BHD + (sample * H + h) * D + d_D, pooled_D, mask=in_D)
        tl.store(lse_BH + sample * H + h, lse)


@triton.jit
def backward_kernel(
    d_pooled_BHD,
    query_BHD,
    seg_GD,
    seg_off_B1,
    pooled_BHD,
    lse_BH,
    d_query_BHD,
    d_seg_GD,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    STAGES: tl.constexpr,
    ADD: tl.constexpr,
):
    """Gradients of one sample's query and segments; the latter is added to what is there where ADD is true."""
    sample = tl.program_id(0).to(tl.int64)
    start = tl.load(seg_off_B1 + sample)
    length = (tl.load(seg_off_B1 + sample + 1) - start).to(tl.int32)
    g_G = tl.arange(0, BLOCK_G)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    query = ()
    d_pooled = ()
    delta = ()
    lse = ()
    d_query = ()
    for h in tl.static_range(H):
        at_D = (sample * H + h) * D + d_D
        d_pooled_D = tl.load(d_pooled_BHD + at_D, mask=in_D, other=0.0).to(tl.float32)
        pooled_D = tl.load(pooled_BHD + at_D, mask=in_D, other=0.0)
        query = query + (tl.load(query_BHD + at_D, mask=in_D, other=0.0).to(tl.float32)[None, :],)
        d_pooled = d_pooled + (d_pooled_D[None, :],)
        delta = delta + (tl.sum(d_pooled_D * pooled_D, axis=0),)
        lse = lse + (tl.load(lse_BH + sample * H + h),)
        d_query = d_query + (tl.zeros((BLOCK_G, BLOCK_D), tl.float32),)
    for first in tl.range(0, length, BLOCK_G, num_stages=STAGES):
        live_G = first + g_G < length
        mask_GD = live_G[:, None] & in_D[None, :]
        seg_at = (start + first + g_G)[:, None] * D + d_D[None, :]
        seg = tl.load(seg_GD + seg_at, mask=mask_GD, other=0.0).to(tl.float32)
        d_seg = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
        if ADD:
            d_seg = tl.load(d_seg_GD + seg_at, mask=mask_GD, other=0.0).to(tl.float32)
        next_d_query = ()
        for h in tl.static_range(H):
            weight_G = tl.where(live_G, tl.exp(tl.sum(seg * query[h], axis=1) - lse[h]), 0.0)
            d_score_G = weight_G * (tl.sum(seg * d_pooled[h], axis=1) - delta[h])
            d_seg += weight_G[:, None] * d_pooled[h] + d_score_G[:, None] * query[h]
            next_d_query = next_d_query + (d_query[h] + d_score_G[:, None] * seg,)
        d_query = next_d_query
        tl.store(d_seg_GD + seg_at, d_seg.to(d_seg_GD.dtype.element_ty), mask=mask_GD)
    for h in tl.static_range(H):
        d_query_D = tl.sum(d_query[h], axis=0).to(d_query_BHD.dtype.element_ty)
        tl.store(d_query_BHD + (sample * H + h) * D + d_D, d_query_D, mask=in_D)


def config(H: int, D: int) -> dict[str, int]:
    """Tile and launch of both kernels: by shape, never by timing."""
    block_d = int(triton.next_power_of_2(D))
    segments = max(1, min(16, 1024 // (int(triton.next_power_of_2(H)) * block_d)))
    return {"BLOCK_D": block_d, "BLOCK_G": segments, "STAGES": 3, "num_warps": 2}


def _launch(dtype: torch.dtype, H: int, D: int, *, backward: bool) -> tuple[Any, dict[str, int]]:
    """Kernel and options for such segments."""
    if tensor_cores.serves(dtype, H, D):
        kernel = tensor_cores.backward_kernel if backward else tensor_cores.forward_kernel
        return kernel, tensor_cores.config(H, D, backward=backward)
    return backward_kernel if backward else forward_kernel, config(H, D)


def forward(query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean [B, H, D] and logarithm of the sum of exponentials [B, H], float32; inputs contiguous."""
    B, H, D = query_BHD.shape
    pooled_BHD = torch.empty_like(query_BHD, dtype=torch.float32)
    lse_BH = pooled_BHD.new_empty(B, H)
    if B:
        kernel, options = _launch(seg_GD.dtype, H, D, backward=False)
        kernel[(B,)](query_BHD, seg_GD, seg_off_B1, pooled_BHD, lse_BH, H=H, D=D, **options)
    return pooled_BHD, lse_BH


def backward(
    d_pooled_BHD: Tensor,
    query_BHD: Tensor,
    seg_GD: Tensor,
    seg_off_B1: Tensor,
    pooled_BHD: Tensor,
    lse_BH: Tensor,
    add_to_GD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of query [B, H, D] and segments [G, D], each in its dtype; inputs contiguous.

    Where ``add_to_GD`` is given, the segments' is added to it, and it is returned.
    """
    B, H, D = query_BHD.shape
    d_query_BHD = torch.empty_like(query_BHD)
    if add_to_GD is None:
        d_seg_GD = torch.empty_like(seg_GD)
        zero_spare_rows(d_seg_GD, seg_off_B1)
    else:
        d_seg_GD = add_to_GD
    if B:
        kernel, options = _launch(seg_GD.dtype, H, D, backward=True)
        inputs = (d_pooled_BHD, query_BHD, seg_GD, seg_off_B1, pooled_BHD, lse_BH)
        kernel[(B,)](*inputs, d_query_BHD, d_seg_GD, H=H, D=D, ADD=add_to_GD is not None, **options)
    return d_query_BHD, d_seg_GD
