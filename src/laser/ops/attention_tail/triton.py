# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""What follows the weighted mean, in Triton: a program takes BLOCK_N rows all the way, each way.

Rows stay in registers, and weights stream past them, head by head and BLOCK_F columns of the hidden layer a step: all
weights of a layer fit the L2 cache. What a product gives is rounded where PyTorch would round it; norms, residuals and
all that is added up are float32.

Backward computes norms and GELU again from what the products gave, writes what gradients of weights are products of,
and a program's own sums for norms and biases, which ``column_sum`` adds up, in order: no atomics, so that equal inputs
give equal bits.

Legend of shape suffixes: N rows; H heads; D width; V value width of a head, D / H; F hidden; P programs; S all sums of
a program (outer weight and bias, inner weight and bias, b2, b1). In kernels: N, F those of a step; V of one head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from laser.ops.feed_forward.triton import gelu, gelu_slope
from laser.ops.linear.functions import column_sum
from laser.ops.products import half_product

BLOCK_N = 16
"""As few rows as tensor cores multiply: 1024 samples are 64 programs."""


@triton.jit
def normal(x_ND, eps):
    """Rows less their mean, over their deviation; and its reciprocal."""
    D: tl.constexpr = x_ND.shape[1]
    difference_ND = x_ND - (tl.sum(x_ND, axis=1) / D)[:, None]
    rstd_N = 1.0 / tl.sqrt(tl.sum(difference_ND * difference_ND, axis=1) / D + eps)
    return difference_ND * rstd_N[:, None], rstd_N


@triton.jit
def d_normal(d_normal_ND, normal_ND, rstd_N):
    """Gradient of the rows that were normalised."""
    D: tl.constexpr = normal_ND.shape[1]
    along_mean_N = tl.sum(d_normal_ND, axis=1) / D
    along_normal_N = tl.sum(d_normal_ND * normal_ND, axis=1) / D
    return (d_normal_ND - along_mean_N[:, None] - normal_ND * along_normal_N[:, None]) * rstd_N[:, None]


@triton.jit
def row_of(x_D, d_D):
    """A norm's weight or a bias, float32, beside rows."""
    return tl.load(x_D + d_D).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["N"])
def forward_kernel(
    user_ND, pooled_NHD, value_HDV, out_DD, weight1_FD, bias1_F, weight2_DF, bias2_D,
    inner_weight_D, inner_bias_D, outer_weight_D, outer_bias_D, y_ND, v_ND, o_ND, hidden_NF, f_ND, N, eps,
    H: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, HEAD_STAGES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The result of BLOCK_N rows, and what each product gave but GELU's."""
    V: tl.constexpr = D // H
    half: tl.constexpr = o_ND.dtype.element_ty
    n_N = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d_D = tl.arange(0, D)
    live_N1 = (n_N < N)[:, None]
    at_ND = n_N[:, None] * D + d_D[None, :]
    zeros_NV, zeros_NF = tl.zeros((BLOCK_N, V), tl.float32), tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
    sum_ND = tl.zeros((BLOCK_N, D), tl.float32)
    for head in tl.range(0, H, num_stages=HEAD_STAGES):
        pooled_ND = tl.load(pooled_NHD + (n_N[:, None] * H + head) * D + d_D[None, :], mask=live_N1, other=0.0)
        v_V = tl.arange(0, V)
        value_DV = tl.load(value_HDV + head * (D * V) + d_D[:, None] * V + v_V[None, :])
        v_NV = half_product(pooled_ND, value_DV, zeros_NV).to(half)
        tl.store(v_ND + n_N[:, None] * D + (head * V + v_V)[None, :], v_NV, mask=live_N1)
        out_VD = tl.load(out_DD + d_D[None, :] * D + (head * V + v_V)[:, None])
        sum_ND = half_product(v_NV, out_VD, sum_ND)
    o = sum_ND.to(half)
    tl.store(o_ND + at_ND, o, mask=live_N1)
    user = tl.load(user_ND + at_ND, mask=live_N1, other=0.0).to(tl.float32)
    normal_ND, _ = normal(user + o.to(tl.float32), eps)
    a_ND = normal_ND * row_of(inner_weight_D, d_D) + row_of(inner_bias_D, d_D)
    a_half_ND = a_ND.to(half)
    sum_ND = tl.zeros((BLOCK_N, D), tl.float32)
    for first in tl.range(0, F, BLOCK_F, num_stages=STAGES):
        f_F = first + tl.arange(0, BLOCK_F)
        weight1_DF = tl.load(weight1_FD + f_F[None, :] * D + d_D[:, None])
        hidden = (half_product(a_half_ND, weight1_DF, zeros_NF) + row_of(bias1_F, f_F)).to(half)
        tl.store(hidden_NF + n_N[:, None] * F + f_F[None, :], hidden, mask=live_N1)
        weight2_FD = tl.load(weight2_DF + d_D[None, :] * F + f_F[:, None])
        sum_ND = half_product(gelu(hidden.to(tl.float32)).to(half), weight2_FD, sum_ND)
    f = (sum_ND + row_of(bias2_D, d_D)).to(half)
    tl.store(f_ND + at_ND, f, mask=live_N1)
    normal_ND, _ = normal(a_ND + f.to(tl.float32), eps)
    y = normal_ND * row_of(outer_weight_D, d_D) + row_of(outer_bias_D, d_D)
    tl.store(y_ND + at_ND, y.to(y_ND.dtype.element_ty), mask=live_N1)


@triton.jit(do_not_specialize=["N"])
def backward_kernel(
    d_y_ND, user_ND, value_HDV, out_DD, weight1_FD, weight2_DF, inner_weight_D, inner_bias_D, outer_weight_D,
    o_ND, hidden_NF, f_ND, d_user_ND, d_pooled_NHD, d_v_ND, d_o_ND, a_ND, d_hidden_NF, active_NF, d_f_ND, part_PS,
    N, eps, H: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, HEAD_STAGES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK_N rows of both inputs; what gradients of weights are products of; sums for norms and biases.

    Rows beyond N have gradients of 0, and so no part in the sums.
    """
    V: tl.constexpr = D // H
    half: tl.constexpr = d_o_ND.dtype.element_ty
    n_N = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d_D = tl.arange(0, D)
    live_N1 = (n_N < N)[:, None]
    at_ND = n_N[:, None] * D + d_D[None, :]
    part_S = part_PS + tl.program_id(0).to(tl.int64) * (5 * D + F)
    zeros_NV, zeros_NF = tl.zeros((BLOCK_N, V), tl.float32), tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
    zeros_ND = tl.zeros((BLOCK_N, D), tl.float32)

    user = tl.load(user_ND + at_ND, mask=live_N1, other=0.0).to(tl.float32)
    o = tl.load(o_ND + at_ND, mask=live_N1, other=0.0).to(tl.float32)
    inner_ND, inner_rstd_N = normal(user + o, eps)
    inner_weight = row_of(inner_weight_D, d_D)
    a = inner_ND * inner_weight + row_of(inner_bias_D, d_D)
    tl.store(a_ND + at_ND, a.to(half), mask=live_N1)
    f = tl.load(f_ND + at_ND, mask=live_N1, other=0.0).to(tl.float32)
    outer_ND, outer_rstd_N = normal(a + f, eps)
    d_y = tl.load(d_y_ND + at_ND, mask=live_N1, other=0.0).to(tl.float32)
    tl.store(part_S + d_D, tl.sum(d_y * outer_ND, axis=0))
    tl.store(part_S + D + d_D, tl.sum(d_y, axis=0))
    d_a = d_normal(d_y * row_of(outer_weight_D, d_D), outer_ND, outer_rstd_N)

    tl.store(part_S + 4 * D + d_D, tl.sum(d_a, axis=0))
    d_f = d_a.to(half)
    tl.store(d_f_ND + at_ND, d_f, mask=live_N1)
    for first in tl.range(0, F, BLOCK_F, num_stages=STAGES):
        f_F = first + tl.arange(0, BLOCK_F)
        at_NF = n_N[:, None] * F + f_F[None, :]
        hidden = tl.load(hidden_NF + at_NF, mask=live_N1, other=0.0).to(tl.float32)
        tl.store(active_NF + at_NF, gelu(hidden).to(half), mask=live_N1)
        weight2 = tl.load(weight2_DF + d_D[:, None] * F + f_F[None, :])
        d_hidden = half_product(d_f, weight2, zeros_NF) * gelu_slope(hidden)
        tl.store(part_S + 5 * D + f_F, tl.sum(d_hidden, axis=0))
        tl.store(d_hidden_NF + at_NF, d_hidden.to(half), mask=live_N1)
        weight1 = tl.load(weight1_FD + f_F[:, None] * D + d_D[None, :])
        d_a = half_product(d_hidden.to(half), weight1, d_a)

    tl.store(part_S + 2 * D + d_D, tl.sum(d_a * inner_ND, axis=0))
    tl.store(part_S + 3 * D + d_D, tl.sum(d_a, axis=0))
    d_sum = d_normal(d_a * inner_weight, inner_ND, inner_rstd_N)
    tl.store(d_user_ND + at_ND, d_sum.to(d_user_ND.dtype.element_ty), mask=live_N1)
    d_o = d_sum.to(half)
    tl.store(d_o_ND + at_ND, d_o, mask=live_N1)
    for head in tl.range(0, H, num_stages=HEAD_STAGES):
        v_V = tl.arange(0, V)
        out_DV = tl.load(out_DD + d_D[:, None] * D + (head * V + v_V)[None, :])
        d_v = half_product(d_o, out_DV, zeros_NV).to(half)
        tl.store(d_v_ND + n_N[:, None] * D + (head * V + v_V)[None, :], d_v, mask=live_N1)
        value_VD = tl.load(value_HDV + head * (D * V) + d_D[None, :] * V + v_V[:, None])
        d_pooled = half_product(d_v, value_VD, zeros_ND).to(half)
        tl.store(d_pooled_NHD + (n_N[:, None] * H + head) * D + d_D[None, :], d_pooled, mask=live_N1)


def config(H: int, D: int, F: int) -> dict[str, int]:
    """Tile and launch of both kernels: by shape, never by timing."""
    # Three times both weights of a head of 128 columns would not fit the shared memory of older GPUs.
    head_stages = 3 if D // H <= 64 else 1
    return {"BLOCK_N": BLOCK_N, "BLOCK_F": min(64, F), "HEAD_STAGES": head_stages, "STAGES": 3, "num_warps": 8}


def forward(
    user_ND: Tensor,
    pooled_NHD: Tensor,
    weights: tuple[Tensor, ...],
    norms: tuple[Tensor, ...],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """Result in ``dtype``; v, o, hidden layer and f of all rows, contiguous, in half precision."""
    (N, H, D), F = pooled_NHD.shape, weights[2].shape[0]
    y_ND = pooled_NHD.new_empty(N, D, dtype=dtype)
    v_ND, o_ND, hidden_NF, f_ND = (pooled_NHD.new_empty(N, columns) for columns in (D, D, F, D))
    if N:
        inputs = [tensor.contiguous() for tensor in (user_ND, pooled_NHD, *weights, *norms)]
        launch: Any = forward_kernel[(triton.cdiv(N, BLOCK_N),)]
        launch(*inputs, y_ND, v_ND, o_ND, hidden_NF, f_ND, N, eps, H=H, D=D, F=F, **config(H, D, F))
    return y_ND, v_ND, o_ND, hidden_NF, f_ND


class Gradients(NamedTuple):
    """Those of rows, norms' weights and biases, and biases b1 and b2; and a and the active hidden layer."""

    d_user_ND: Tensor
    d_pooled_NHD: Tensor
    d_v_ND: Tensor
    d_o_ND: Tensor
    a_ND: Tensor
    d_hidden_NF: Tensor
    active_NF: Tensor
    d_f_ND: Tensor
    d_norms: list[Tensor]
    d_biases: tuple[Tensor, Tensor]


def backward(
    d_y_ND: Tensor,
    user_ND: Tensor,
    weights: tuple[Tensor, ...],
    norms: tuple[Tensor, ...],
    kept: list[Tensor],
    eps: float,
) -> Gradients:
    """All but gradients of weights, which are products of these; ``kept``: o, hidden layer and f."""
    value_HDV, out_DD, weight1_FD, _, weight2_DF, bias2_D = weights
    N, (H, D, _), F = user_ND.shape[0], value_HDV.shape, weight1_FD.shape[0]
    d_user_ND = torch.empty_like(user_ND, memory_format=torch.contiguous_format)
    shapes = (N, H, D), (N, D), (N, D), (N, D), (N, F), (N, F), (N, D)
    written = [value_HDV.new_empty(shape) for shape in shapes]
    programs = triton.cdiv(N, BLOCK_N)
    part_PS = value_HDV.new_empty(programs, 5 * D + F, dtype=torch.float32)
    if N:
        read = (d_y_ND, user_ND, value_HDV, out_DD, weight1_FD, weight2_DF, *norms[:3])
        inputs = [tensor.contiguous() for tensor in read]
        launch: Any = backward_kernel[(programs,)]
        launch(*inputs, *kept, d_user_ND, *written, part_PS, N, eps, H=H, D=D, F=F, **config(H, D, F))
    sum_S = column_sum(part_PS[None])[0]
    outer_weight, outer_bias, inner_weight, inner_bias = sum_S[: 4 * D].split(D)
    of_norms = zip((inner_weight, inner_bias, outer_weight, outer_bias), norms, strict=True)
    d_bias2_D, d_bias1_F = sum_S[4 * D :].to(bias2_D.dtype).split((D, F))
    d_norms = [gradient.to(norm.dtype) for gradient, norm in of_norms]
    return Gradients(d_user_ND, *written, d_norms, (d_bias1_F, d_bias2_D))
