# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""The two products of a feed-forward network at whose end there is GELU, or its derivative, in Triton.

A program makes a tile of the hidden layer on tensor cores, in float32. Forward it adds the bias, rounds, and writes the
sum and its GELU. Backward it multiplies by GELU's derivative, writes that, and leaves the sum over its rows, of which
another sum makes the bias' gradient; no atomics, so that equal inputs give equal bits.

Legend of shape suffixes: N rows; H groups; I inputs; F hidden; O outputs; T tiles of rows; in kernels: N, F and K (a
step through I or O) of a tile.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from laser.ops.products import HALF, half_product

INVERSE_SQRT_TAU = tl.constexpr(0.3989422804014327)
MINUS_HALF_LOG2_E = tl.constexpr(-0.7213475204444817)
NEARNESS = tl.constexpr(0.53 * 0.5**0.5)
C1, C2, C3, C4, C5 = (tl.constexpr(c) for c in (0.148941, 0.15790485, 0.08262256, 0.20150704, -0.09098096))
"""exp(z^2) erfc(z) / 2 = C1 t + ... + C5 t^5 with t = 1 / (1 + 0.53 z), within a factor of 1 +- 3e-5 for all z >= 0:
fitted by us, by linear programming. A float16 is rounded by up to 4.9e-4 of itself."""


@triton.jit
def exp2(x):
    """2^x by the instruction that the hardware has, without denormals."""
    if HALF:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.exp2(x)


@triton.jit
def reciprocal(x):
    """1 / x likewise."""
    if HALF:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return 1.0 / x


@triton.jit
def tail(x):
    """The share of the normal distribution above |x|, erfc(|x| / sqrt(2)) / 2, and exp(-x^2 / 2)."""
    density = exp2(x * x * MINUS_HALF_LOG2_E)
    t = reciprocal(tl.abs(x) * NEARNESS + 1.0)
    return ((((t * C5 + C4) * t + C3) * t + C2) * t + C1) * t * density, density


@triton.jit
def gelu(x):
    """x times the share of the normal distribution below x: no difference of nearly equal numbers, as 1 + erf is."""
    above, _ = tail(x)
    return tl.maximum(x, 0.0) - tl.abs(x) * above


@triton.jit
def gelu_slope(x):
    """The derivative of GELU."""
    above, density = tail(x)
    return tl.where(x < 0, above, 1.0 - above) + x * INVERSE_SQRT_TAU * density


@triton.jit
def tile_product(
    left, right, n_N, f_F, N, F, K: tl.constexpr, left_n, left_k, right_k, right_f,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows n_N of left [N, K] times columns f_F of right [K, F], float32; strides in elements."""
    sum_NF = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
    k_K = tl.arange(0, BLOCK_K)
    for first in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        in_K = first + k_K < K
        left_at = left + n_N[:, None] * left_n + (first + k_K)[None, :] * left_k
        right_at = right + (first + k_K)[:, None] * right_k + f_F[None, :] * right_f
        left_NK = tl.load(left_at, mask=(n_N < N)[:, None] & in_K[None, :], other=0.0)
        right_KF = tl.load(right_at, mask=in_K[:, None] & (f_F < F)[None, :], other=0.0)
        sum_NF = half_product(left_NK, right_KF, sum_NF)
    return sum_NF


@triton.jit(do_not_specialize=["N"])
def hidden_kernel(
    x_NHI, weight_HIF, bias_HF, hidden_HNF, active_HNF, N, x_n, x_h, x_i, weight_h, weight_i, weight_f,
    I: tl.constexpr, F: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x W + b and its GELU, of one tile of one group."""
    tiles: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    group = tl.program_id(1).to(tl.int64)
    n_N = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    f_F = tl.program_id(0) % tiles * BLOCK_F + tl.arange(0, BLOCK_F)
    sum_NF = tile_product(
        x_NHI + group * x_h, weight_HIF + group * weight_h, n_N, f_F, N, F, I, x_n, x_i, weight_i, weight_f,
        BLOCK_N, BLOCK_F, BLOCK_K, STAGES,
    )  # fmt: skip
    bias_F = tl.load(bias_HF + group * F + f_F, mask=f_F < F, other=0.0).to(tl.float32)
    hidden_NF = (sum_NF + bias_F[None, :]).to(hidden_HNF.dtype.element_ty)
    at_NF = (group * N + n_N)[:, None] * F + f_F[None, :]
    mask_NF = (n_N < N)[:, None] & (f_F < F)[None, :]
    tl.store(hidden_HNF + at_NF, hidden_NF, mask=mask_NF)
    active_NF = gelu(hidden_NF.to(tl.float32))
    tl.store(active_HNF + at_NF, active_NF.to(active_HNF.dtype.element_ty), mask=mask_NF)


@triton.jit(do_not_specialize=["N"])
def d_hidden_kernel(
    d_y_NHO, weight_HFO, hidden_HNF, d_hidden_HNF, part_THF, N, d_y_n, d_y_h, d_y_o, weight_h, weight_f, weight_o,
    H: tl.constexpr, F: tl.constexpr, O: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """d_y W^T times GELU'(hidden), of one tile of one group, and the float32 sum over its rows, before rounding."""
    tiles: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    group = tl.program_id(1).to(tl.int64)
    tile = (tl.program_id(0) // tiles).to(tl.int64)
    n_N = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    f_F = tl.program_id(0) % tiles * BLOCK_F + tl.arange(0, BLOCK_F)
    sum_NF = tile_product(
        d_y_NHO + group * d_y_h, weight_HFO + group * weight_h, n_N, f_F, N, F, O, d_y_n, d_y_o, weight_o, weight_f,
        BLOCK_N, BLOCK_F, BLOCK_K, STAGES,
    )  # fmt: skip
    at_NF = (group * N + n_N)[:, None] * F + f_F[None, :]
    mask_NF = (n_N < N)[:, None] & (f_F < F)[None, :]
    hidden_NF = tl.load(hidden_HNF + at_NF, mask=mask_NF, other=0.0).to(tl.float32)
    d_hidden_NF = sum_NF * gelu_slope(hidden_NF)
    tl.store(d_hidden_HNF + at_NF, d_hidden_NF.to(d_hidden_HNF.dtype.element_ty), mask=mask_NF)
    tl.store(part_THF + (tile * H + group) * F + f_F, tl.sum(d_hidden_NF, axis=0), mask=f_F < F)


def config(K: int, F: int, rows: int, most_columns: int) -> dict[str, int]:
    """Tile and launch: by shape, never by timing. Of small tiles some load while others take erf."""
    block_k, block_f = (max(16, int(triton.next_power_of_2(size))) for size in (K, F))
    block_f = min(most_columns, block_f)
    return {"BLOCK_N": rows, "BLOCK_F": block_f, "BLOCK_K": min(64, block_k), "STAGES": 3, "num_warps": 4}


def hidden(x_NHI: Tensor, weight_HIF: Tensor, bias_HF: Tensor) -> tuple[Tensor, Tensor]:
    """x_h W_h + b_h and its GELU, contiguous [H, N, F]; x and weight of any strides."""
    N, (H, I, F) = x_NHI.shape[0], weight_HIF.shape
    hidden_HNF = x_NHI.new_empty(H, N, F)
    active_HNF = torch.empty_like(hidden_HNF)
    launch, options = _launch(hidden_kernel, N, H, F, I, 64, 128)
    strides = (*x_NHI.stride(), *weight_HIF.stride())
    launch(x_NHI, weight_HIF, bias_HF.contiguous(), hidden_HNF, active_HNF, N, *strides, I=I, F=F, **options)
    return hidden_HNF, active_HNF


def d_hidden(d_y_NHO: Tensor, weight_HFO: Tensor, hidden_HNF: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the hidden layer before GELU, contiguous [H, N, F], and of its bias, [H, F]."""
    N, (H, F, O) = d_y_NHO.shape[0], weight_HFO.shape
    d_hidden_HNF = torch.empty_like(hidden_HNF)
    launch, options = _launch(d_hidden_kernel, N, H, F, O, 128, 64)
    part_THF = hidden_HNF.new_empty(triton.cdiv(N, options["BLOCK_N"]), H, F, dtype=torch.float32)
    strides = (*d_y_NHO.stride(), *weight_HFO.stride())
    launch(d_y_NHO, weight_HFO, hidden_HNF, d_hidden_HNF, part_THF, N, *strides, H=H, F=F, O=O, **options)
    return d_hidden_HNF, part_THF.sum(0).to(d_y_NHO.dtype)


def _launch(kernel: Any, N: int, H: int, F: int, K: int, rows: int, most_columns: int) -> tuple[Any, dict[str, int]]:
    options = config(K, F, rows, most_columns)
    # Neighbours share rows.
    return kernel[(triton.cdiv(N, options["BLOCK_N"]) * triton.cdiv(F, options["BLOCK_F"]), H)], options
