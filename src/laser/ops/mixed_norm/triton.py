# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""Layer norm of mixed tokens and their own in Triton: a program holds whole samples, M rows each, forward and backward.

With slices of S = D / M values, element h S + j of token m of the mix is element m S + j of token h: both kernels read
it there, in the sample that they read anyway. Mixing is its own inverse and its own transpose, so that the gradient of
x is that of the sum plus its mix, which is made in registers.

Backward's programs take every so many-th tile of samples and sum their own part of the gradients of weight and bias,
which ``residual_norm``'s second kernel adds, in order. M and D are powers of two.

Legend of shape suffixes: B samples; M tokens; D width; S a slice; N rows, B x M (in kernels: of one tile); P programs
that share the samples, one part of each.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from laser.ops.residual_norm.triton import (
    COLUMNS,
    MOST_PROGRAMS,
    PARTS,
    TILE_ELEMENTS,
    reduce_kernel,
    strided_rows,
)


@triton.jit
def mixed_sum(x, row_N, live_N, x_outer, x_inner, M: tl.constexpr, D: tl.constexpr):
    """Float32 mix(x) + x of whole rows; 0 where there is none."""
    d_D = tl.arange(0, D)
    slice_D = d_D // (D // M)
    sample_N = (row_N // M).to(tl.int64)
    token_N = row_N % M
    row_of_mixed = sample_N[:, None] * x_outer + slice_D.to(tl.int64)[None, :] * x_inner
    mixed_at = x + row_of_mixed + (token_N * (D // M))[:, None] + (d_D % (D // M))[None, :]
    own = tl.load(strided_rows(x, row_N, M, x_outer, x_inner, d_D), mask=live_N[:, None], other=0.0)
    mixed = tl.load(mixed_at, mask=live_N[:, None], other=0.0)
    return mixed.to(tl.float32) + own.to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def forward_kernel(
    x_BMD,
    weight_D,
    bias_D,
    y_BMD,
    mean_N,
    rstd_N,
    num_rows,
    x_outer,
    x_inner,
    eps,
    M: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Normalise BLOCK_N rows, which are whole samples, and keep their mean and reciprocal deviation."""
    row_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d_D = tl.arange(0, D)
    live_N = row_N < num_rows
    weight = tl.load(weight_D + d_D).to(tl.float32)
    bias = tl.load(bias_D + d_D).to(tl.float32)
    sum_ND = mixed_sum(x_BMD, row_N, live_N, x_outer, x_inner, M, D)
    mean = tl.sum(sum_ND, axis=1) / D
    # Squares of differences, not a difference of squares: a mean far beyond the spread costs no precision.
    difference_ND = sum_ND - mean[:, None]
    rstd = 1.0 / tl.sqrt(tl.sum(difference_ND * difference_ND, axis=1) / D + eps)
    y = difference_ND * rstd[:, None] * weight[None, :] + bias[None, :]
    y_at = y_BMD + row_N.to(tl.int64)[:, None] * D + d_D[None, :]
    tl.store(y_at, y.to(y_BMD.dtype.element_ty), mask=live_N[:, None])
    tl.store(mean_N + row_N, mean, mask=live_N)
    tl.store(rstd_N + row_N, rstd, mask=live_N)


@triton.jit(do_not_specialize=["num_rows"])
def backward_kernel(
    d_y_BMD,
    x_BMD,
    weight_D,
    mean_N,
    rstd_N,
    d_x_BMD,
    part_P2D,
    num_rows,
    d_y_outer,
    d_y_inner,
    x_outer,
    x_inner,
    M: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradient of x, and one part of those of weight and bias."""
    program = tl.program_id(0)
    d_D = tl.arange(0, D)
    weight = tl.load(weight_D + d_D).to(tl.float32)
    d_weight_ND = tl.zeros((BLOCK_N, D), tl.float32)
    d_bias_ND = tl.zeros((BLOCK_N, D), tl.float32)
    for first in range(program * BLOCK_N, num_rows, tl.num_programs(0) * BLOCK_N):
        row_N = first + tl.arange(0, BLOCK_N)
        live_N = row_N < num_rows
        d_y_at = strided_rows(d_y_BMD, row_N, M, d_y_outer, d_y_inner, d_D)
        d_y = tl.load(d_y_at, mask=live_N[:, None], other=0.0).to(tl.float32)
        mean = tl.load(mean_N + row_N, mask=live_N, other=0.0)
        rstd = tl.load(rstd_N + row_N, mask=live_N, other=0.0)
        normal_ND = (mixed_sum(x_BMD, row_N, live_N, x_outer, x_inner, M, D) - mean[:, None]) * rstd[:, None]
        d_normal_ND = d_y * weight[None, :]
        along_mean = tl.sum(d_normal_ND, axis=1) / D
        along_normal = tl.sum(d_normal_ND * normal_ND, axis=1) / D
        d_sum = (d_normal_ND - along_mean[:, None] - normal_ND * along_normal[:, None]) * rstd[:, None]
        d_sum_BMMS = tl.reshape(d_sum, (BLOCK_N // M, M, M, D // M))
        d_x = d_sum + tl.reshape(tl.permute(d_sum_BMMS, (0, 2, 1, 3)), (BLOCK_N, D))
        d_x_at = d_x_BMD + row_N.to(tl.int64)[:, None] * D + d_D[None, :]
        tl.store(d_x_at, d_x.to(d_x_BMD.dtype.element_ty), mask=live_N[:, None])
        d_weight_ND += d_y * normal_ND
        d_bias_ND += d_y
    part_at = part_P2D + program.to(tl.int64) * (2 * D) + d_D
    tl.store(part_at, tl.sum(d_weight_ND, axis=0))
    tl.store(part_at + D, tl.sum(d_bias_ND, axis=0))


def config(M: int, D: int) -> dict[str, int]:
    """Tile and launch of the forward and the backward kernel."""
    rows = M * max(1, TILE_ELEMENTS // (M * D))
    return {"M": M, "D": D, "BLOCK_N": rows, "num_warps": max(4, rows * D // 512)}


def forward(
    x_BMD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm of mix(x) + x in ``dtype`` [B, M, D], contiguous; float32 mean [N] and reciprocal deviation [N]."""
    B, M, D = x_BMD.shape
    y_BMD = x_BMD.new_empty(B, M, D, dtype=dtype)
    mean_N, rstd_N = (x_BMD.new_empty(B * M, dtype=torch.float32) for _ in range(2))
    if B:
        x = _last_stride_1(x_BMD)
        tile = config(M, D)
        launch: Any = forward_kernel[(triton.cdiv(B * M, tile["BLOCK_N"]),)]
        weights = (weight_D.contiguous(), bias_D.contiguous())
        launch(x, *weights, y_BMD, mean_N, rstd_N, B * M, *x.stride()[:2], eps, **tile)
    return y_BMD, mean_N, rstd_N


def backward(
    d_y_BMD: Tensor, x_BMD: Tensor, weight_D: Tensor, mean_N: Tensor, rstd_N: Tensor, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, each in its dtype; contiguous."""
    B, M, D = x_BMD.shape
    d_x_BMD = x_BMD.new_empty(B, M, D)
    d_weight_D, d_bias_D = weight_D.new_empty(D), weight_D.new_empty(D, dtype=bias_dtype)
    if not B:
        return d_x_BMD, d_weight_D.zero_(), d_bias_D.zero_()
    d_y, x = _last_stride_1(d_y_BMD), _last_stride_1(x_BMD)
    tile = config(M, D)
    programs = min(triton.cdiv(B * M, tile["BLOCK_N"]), MOST_PROGRAMS)
    part_P2D = weight_D.new_empty(programs, 2, D, dtype=torch.float32)
    tensors = (d_y, x, weight_D.contiguous(), mean_N, rstd_N, d_x_BMD, part_P2D)
    launch: Any = backward_kernel[(programs,)]
    launch(*tensors, B * M, *d_y.stride()[:2], *x.stride()[:2], **tile)
    reduce: Any = reduce_kernel[(triton.cdiv(D, COLUMNS),)]
    reduce(part_P2D, d_weight_D, d_bias_D, programs, D=D, BLOCK_P=PARTS, BLOCK_D=COLUMNS, num_warps=8)
    return d_x_BMD, d_weight_D, d_bias_D


def _last_stride_1(x_BMD: Tensor) -> Tensor:
    return x_BMD if x_BMD.stride(-1) == 1 else x_BMD.contiguous()
