# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""Layer norm of a sum in Triton: forward reads a and b once and writes y; backward reads both again.

A program holds whole rows. Backward computes the normalised rows again, and each of its programs takes every so many-th
tile of rows and sums its own part of the gradients of weight and bias; a second kernel adds the parts, in order.

Inputs are [outer, inner, D] with any strides but the last, which is 1: the transposed result of a product per token, or
the gradient of a mean over tokens (stride 0), is read where it lies.

Legend of shape suffixes: N rows, outer x inner (in kernels: of one tile); D width (in reduce_kernel: columns of one
program); P programs that share the rows, one part of each (in kernels: parts of one tile).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ELEMENTS = 1 << 10
"""Of a tile [rows, D]: one 16-byte load of half precision a thread."""
MOST_PROGRAMS = 512
"""That share the rows in backward: about four for each multiprocessor of an H200. A constant, as another number is
another order of summation, and so other bits."""
PARTS, COLUMNS = 128, 16
"""Tile of reduce_kernel."""


@triton.jit
def strided_rows(x, row_N, inner, outer_stride, inner_stride, d_D):
    """Pointers to rows of [outer, inner, D]."""
    outer_N = row_N // inner
    inner_N = row_N - outer_N * inner
    offset_N = outer_N.to(tl.int64) * outer_stride + inner_N.to(tl.int64) * inner_stride
    return x + offset_N[:, None] + d_D[None, :]


@triton.jit(do_not_specialize=["num_rows"])
def forward_kernel(
    a_ND,
    b_ND,
    weight_D,
    bias_D,
    y_ND,
    mean_N,
    rstd_N,
    num_rows,
    inner,
    a_outer,
    a_inner,
    b_outer,
    b_inner,
    eps,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Normalise BLOCK_N rows, and keep their mean and reciprocal deviation."""
    row_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d_D = tl.arange(0, BLOCK_D)
    live_N = row_N < num_rows
    in_D = d_D < D
    mask_ND = live_N[:, None] & in_D[None, :]
    a = tl.load(strided_rows(a_ND, row_N, inner, a_outer, a_inner, d_D), mask=mask_ND, other=0.0)
    b = tl.load(strided_rows(b_ND, row_N, inner, b_outer, b_inner, d_D), mask=mask_ND, other=0.0)
    weight = tl.load(weight_D + d_D, mask=in_D, other=0.0).to(tl.float32)
    bias = tl.load(bias_D + d_D, mask=in_D, other=0.0).to(tl.float32)
    sum_ND = a.to(tl.float32) + b.to(tl.float32)
    mean = tl.sum(sum_ND, axis=1) / D
    # Squares of differences, not a difference of squares: a mean far beyond the spread costs no precision.
    difference_ND = tl.where(mask_ND, sum_ND - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(difference_ND * difference_ND, axis=1) / D + eps)
    y = difference_ND * rstd[:, None] * weight[None, :] + bias[None, :]
    y_at = y_ND + row_N.to(tl.int64)[:, None] * D + d_D[None, :]
    tl.store(y_at, y.to(y_ND.dtype.element_ty), mask=mask_ND)
    tl.store(mean_N + row_N, mean, mask=live_N)
    tl.store(rstd_N + row_N, rstd, mask=live_N)


@triton.jit(do_not_specialize=["num_rows"])
def backward_kernel(
    d_y_ND,
    a_ND,
    b_ND,
    weight_D,
    mean_N,
    rstd_N,
    d_a_ND,
    d_b_ND,
    part_P2D,
    num_rows,
    inner,
    d_y_outer,
    d_y_inner,
    a_outer,
    a_inner,
    b_outer,
    b_inner,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    APART: tl.constexpr,
):
    """Gradient of a and b (APART: in two dtypes), and one part of those of weight and bias."""
    program = tl.program_id(0)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    weight = tl.load(weight_D + d_D, mask=in_D, other=0.0).to(tl.float32)
    d_weight_ND = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    d_bias_ND = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(program * BLOCK_N, num_rows, tl.num_programs(0) * BLOCK_N):
        row_N = first + tl.arange(0, BLOCK_N)
        live_N = row_N < num_rows
        mask_ND = live_N[:, None] & in_D[None, :]
        d_y_at = strided_rows(d_y_ND, row_N, inner, d_y_outer, d_y_inner, d_D)
        d_y = tl.load(d_y_at, mask=mask_ND, other=0.0).to(tl.float32)
        a = tl.load(strided_rows(a_ND, row_N, inner, a_outer, a_inner, d_D), mask=mask_ND, other=0.0)
        b = tl.load(strided_rows(b_ND, row_N, inner, b_outer, b_inner, d_D), mask=mask_ND, other=0.0)
        mean = tl.load(mean_N + row_N, mask=live_N, other=0.0)
        rstd = tl.load(rstd_N + row_N, mask=live_N, other=0.0)
        # What lies beside the mask has no part: d_y is 0 there.
        normal_ND = (a.to(tl.float32) + b.to(tl.float32) - mean[:, None]) * rstd[:, None]
        d_normal_ND = d_y * weight[None, :]
        along_mean = tl.sum(d_normal_ND, axis=1) / D
        along_normal = tl.sum(d_normal_ND * normal_ND, axis=1) / D
        d_sum = (d_normal_ND - along_mean[:, None] - normal_ND * along_normal[:, None]) * rstd[:, None]
        at_ND = row_N.to(tl.int64)[:, None] * D + d_D[None, :]
        tl.store(d_a_ND + at_ND, d_sum.to(d_a_ND.dtype.element_ty), mask=mask_ND)
        if APART:
            tl.store(d_b_ND + at_ND, d_sum.to(d_b_ND.dtype.element_ty), mask=mask_ND)
        d_weight_ND += d_y * normal_ND
        d_bias_ND += d_y
    part_at = part_P2D + program.to(tl.int64) * (2 * D) + d_D
    tl.store(part_at, tl.sum(d_weight_ND, axis=0), mask=in_D)
    tl.store(part_at + D, tl.sum(d_bias_ND, axis=0), mask=in_D)


@triton.jit(do_not_specialize=["num_parts"])
def reduce_kernel(
    part_P2D,
    d_weight_D,
    d_bias_D,
    num_parts,
    D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add the parts of BLOCK_D columns of the gradients of weight and bias."""
    d_D = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_D = d_D < D
    d_weight_PD = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    d_bias_PD = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    for first in range(0, num_parts, BLOCK_P):
        p_P = first + tl.arange(0, BLOCK_P)
        mask_PD = (p_P < num_parts)[:, None] & in_D[None, :]
        part_at = part_P2D + p_P.to(tl.int64)[:, None] * (2 * D) + d_D[None, :]
        d_weight_PD += tl.load(part_at, mask=mask_PD, other=0.0)
        d_bias_PD += tl.load(part_at + D, mask=mask_PD, other=0.0)
    tl.store(d_weight_D + d_D, tl.sum(d_weight_PD, axis=0).to(d_weight_D.dtype.element_ty), mask=in_D)
    tl.store(d_bias_D + d_D, tl.sum(d_bias_PD, axis=0).to(d_bias_D.dtype.element_ty), mask=in_D)


def config(D: int) -> dict[str, int]:
    """Tile and launch of the forward and the backward kernel."""
    block_d = int(triton.next_power_of_2(D))
    return {"BLOCK_D": block_d, "BLOCK_N": max(1, TILE_ELEMENTS // block_d), "num_warps": 4}


def as_rows(*tensors: Tensor) -> list[Tensor]:
    """Tensors of one shape as [outer, inner, D], the last stride 1; copied only where the kernels could not read them.

    Inner is 1 unless a tensor needs it, as a row's place costs a division.
    """
    D = tensors[0].shape[-1]
    tensors = tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)
    if tensors[0].dim() == 3 and any(x.stride(0) != x.shape[1] * x.stride(1) for x in tensors):
        return list(tensors)
    return [x.reshape(-1, 1, D) for x in tensors]


def forward(
    a_ND: Tensor, b_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm of the sum in ``dtype`` [..., D], contiguous; float32 mean [N] and reciprocal deviation [N]."""
    shape, D = a_ND.shape, a_ND.shape[-1]
    a, b = as_rows(a_ND, b_ND)
    outer, inner, _ = a.shape
    y_ND = a_ND.new_empty(shape, dtype=dtype)
    mean_N = a_ND.new_empty(outer * inner, dtype=torch.float32)
    rstd_N = a_ND.new_empty(outer * inner, dtype=torch.float32)
    if N := outer * inner:
        tile = config(D)
        launch: Any = forward_kernel[(triton.cdiv(N, tile["BLOCK_N"]),)]
        strides = (*a.stride()[:2], *b.stride()[:2])
        weights = (weight_D.contiguous(), bias_D.contiguous())
        launch(a, b, *weights, y_ND, mean_N, rstd_N, N, inner, *strides, eps, D=D, **tile)
    return y_ND, mean_N, rstd_N


def backward(
    d_y_ND: Tensor,
    a_ND: Tensor,
    b_ND: Tensor,
    weight_D: Tensor,
    mean_N: Tensor,
    rstd_N: Tensor,
    bias_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a, b (one tensor if the dtypes are equal), weight and bias, each in its dtype; contiguous."""
    shape, D = a_ND.shape, a_ND.shape[-1]
    d_weight_D, d_bias_D = weight_D.new_empty(D), weight_D.new_empty(D, dtype=bias_dtype)
    d_a_ND = a_ND.new_empty(shape)
    d_b_ND = d_a_ND if a_ND.dtype == b_ND.dtype else b_ND.new_empty(shape)
    d_y, a, b = as_rows(d_y_ND, a_ND, b_ND)
    outer, inner, _ = a.shape
    if not (N := outer * inner):
        return d_a_ND, d_b_ND, d_weight_D.zero_(), d_bias_D.zero_()
    tile = config(D)
    programs = min(triton.cdiv(N, tile["BLOCK_N"]), MOST_PROGRAMS)
    part_P2D = weight_D.new_empty(programs, 2, D, dtype=torch.float32)
    strides = (*d_y.stride()[:2], *a.stride()[:2], *b.stride()[:2])
    tensors = (d_y, a, b, weight_D.contiguous(), mean_N, rstd_N, d_a_ND, d_b_ND, part_P2D)
    launch: Any = backward_kernel[(programs,)]
    launch(*tensors, N, inner, *strides, D=D, APART=d_b_ND is not d_a_ND, **tile)
    reduce: Any = reduce_kernel[(triton.cdiv(D, COLUMNS),)]
    reduce(part_P2D, d_weight_D, d_bias_D, programs, D=D, BLOCK_P=PARTS, BLOCK_D=COLUMNS, num_warps=8)
    return d_a_ND, d_b_ND, d_weight_D, d_bias_D
