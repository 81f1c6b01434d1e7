# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""Target attention over bfloat16 segments on tensor cores: a program takes one sample, BLOCK_G segments a step.

Heads are the narrow side of every product, where tensor cores take eight columns at least. So a head has several, and
float32's precision costs nothing: a float32 factor is the sum of two bfloat16 (16 bits of mantissa, against the 8 of
the segments), which lie in columns of their own.

    forward   column = (head, part)         part: high or low of the query; and of the weights
    backward  column = (copy, head, part)   part: high or low of query and d_pooled; copy: of weights and d_scores

Sums over columns of one head are then products of both sums: seg . (high + low) for scores, and with copies
(high + low) . (high + low) for gradients of segments. What follows from scores is computed in every column of a head.

The softmax is online: a step's largest scores rescale what was summed before. Scores, weights and sums are float32.

Legend of shape suffixes: B samples; G segments, packed (in kernels: of one step); H heads (in kernels: as many as there
is room for); C columns; K columns of w and d_score; D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from laser.ops.products import halves, load_side, product


@triton.jit
def part(x, low, SPLIT: tl.constexpr):
    """The high part of x as bfloat16, where ``low`` the rest; both as float32 in Triton's interpreter."""
    high = x.to(tl.bfloat16).to(tl.float32)
    chosen = tl.where(low, x - high, high)
    if SPLIT:
        chosen = chosen.to(tl.bfloat16)
    return chosen


@triton.jit
def parts_as_rows(x_HD, SPLIT: tl.constexpr):
    """Rows (head, part) of rows of heads: [2 H, D]."""
    H: tl.constexpr = x_HD.shape[0]
    D: tl.constexpr = x_HD.shape[1]
    x_HPD = tl.broadcast_to(x_HD[:, None, :], (H, 2, D))
    return tl.reshape(part(x_HPD, (tl.arange(0, 2) == 1)[None, :, None], SPLIT), (2 * H, D))


@triton.jit
def sum_of_parts(x_GC):
    """What the two parts of a head sum to, in the columns of both."""
    G: tl.constexpr = x_GC.shape[0]
    C: tl.constexpr = x_GC.shape[1]
    x_GHP = tl.reshape(x_GC, (G, C // 2, 2))
    return tl.reshape(tl.broadcast_to(tl.sum(x_GHP, axis=2, keep_dims=True), (G, C // 2, 2)), (G, C))


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
    C: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Mean and logarithm of the sum of exponentials of one sample."""
    sample = tl.program_id(0).to(tl.int64)
    start = tl.load(seg_off_B1 + sample)
    length = (tl.load(seg_off_B1 + sample + 1) - start).to(tl.int32)
    g_G = tl.arange(0, BLOCK_G)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    at_GD = g_G[:, None] * D + d_D[None, :]
    h_H = tl.arange(0, C // 2)
    c_C = tl.arange(0, C)
    query_at = query_BHD + (sample * H + h_H)[:, None] * D + d_D[None, :]
    query_HD = tl.load(query_at, mask=(h_H < H)[:, None] & in_D[None, :], other=0.0).to(tl.float32)
    query_DC = tl.trans(parts_as_rows(query_HD, SPLIT))
    zeros_GC = tl.zeros((BLOCK_G, C), tl.float32)
    top_C = tl.full((C,), float("-inf"), tl.float32)
    total_GC = zeros_GC
    sum_DC = tl.zeros((BLOCK_D, C), tl.float32)
    for first in tl.range(0, length, BLOCK_G, num_stages=STAGES):
        live_G = first + g_G < length
        seg_at = seg_GD + (start + first) * D + at_GD
        seg = load_side(seg_at, live_G[:, None] & in_D[None, :], SPLIT)
        score_GC = sum_of_parts(product(seg, query_DC, zeros_GC, SPLIT))
        score_GC = tl.where(live_G[:, None], score_GC, float("-inf"))
        next_top_C = tl.maximum(top_C, tl.max(score_GC, axis=0))
        scale_C = tl.exp(top_C - next_top_C)
        weight_GC = tl.exp(score_GC - next_top_C[None, :])
        total_GC = total_GC * scale_C[None, :] + weight_GC
        weight_part_GC = part(weight_GC, (c_C % 2 == 1)[None, :], SPLIT)
        sum_DC = product(tl.trans(seg), weight_part_GC, sum_DC * scale_C[None, :], SPLIT)
        top_C = next_top_C
    total_C = tl.sum(total_GC, axis=0)
    some_C = total_C > 0
    divisor_C = tl.where(some_C, total_C, 1.0)
    # Without segments the sum is 0, and the largest score -inf.
    lse_C = tl.where(some_C, top_C + tl.log(divisor_C), 0.0)
    tl.store(lse_BH + sample * H + c_C // 2, lse_C, mask=(c_C % 2 == 0) & (c_C // 2 < H))
    # One division a column: dividing every sum took as long as two steps.
    mean_DC = sum_DC * (1.0 / divisor_C)[None, :]
    pooled_DH = tl.sum(tl.reshape(mean_DC, (BLOCK_D, C // 2, 2)), axis=2)
    pooled_at = pooled_BHD + (sample * H + h_H)[None, :] * D + d_D[:, None]
    tl.store(pooled_at, pooled_DH, mask=(h_H < H)[None, :] & in_D[:, None])


@triton.jit
def in_columns(x_H, C: tl.constexpr):
    """A number of each head in all of its columns (copy, head, part)."""
    HEADS: tl.constexpr = C // 4
    return tl.reshape(tl.broadcast_to(x_H[None, :, None], (2, HEADS, 2)), (C,))


@triton.jit
def factors(query_HD, d_pooled_HD, SPLIT: tl.constexpr):
    """Rows (d_pooled or query, copy, head, part), [K, D]."""
    C: tl.constexpr = 4 * query_HD.shape[0]
    D: tl.constexpr = query_HD.shape[1]
    two = tl.arange(0, 2) == 1
    both = tl.where(
        two[:, None, None, None, None], query_HD[None, None, :, None, :], d_pooled_HD[None, None, :, None, :]
    )
    both = tl.broadcast_to(both, (2, 2, C // 4, 2, D))
    return tl.reshape(part(both, two[None, None, None, :, None], SPLIT), (2 * C, D))


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
    C: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    ADD: tl.constexpr,
):
    """Gradients of one sample's query and segments; the latter is added to what is there where ADD is true."""
    sample = tl.program_id(0).to(tl.int64)
    start = tl.load(seg_off_B1 + sample)
    length = (tl.load(seg_off_B1 + sample + 1) - start).to(tl.int32)
    g_G = tl.arange(0, BLOCK_G)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    at_GD = g_G[:, None] * D + d_D[None, :]
    h_H = tl.arange(0, C // 4)
    at_HD = (sample * H + h_H)[:, None] * D + d_D[None, :]
    mask_HD = (h_H < H)[:, None] & in_D[None, :]
    query_HD = tl.load(query_BHD + at_HD, mask=mask_HD, other=0.0).to(tl.float32)
    d_pooled_HD = tl.load(d_pooled_BHD + at_HD, mask=mask_HD, other=0.0).to(tl.float32)
    pooled_HD = tl.load(pooled_BHD + at_HD, mask=mask_HD, other=0.0)
    lse_C = in_columns(tl.load(lse_BH + sample * H + h_H, mask=h_H < H, other=0.0), C)
    delta_C = in_columns(tl.sum(d_pooled_HD * pooled_HD, axis=1), C)
    factor_KD = factors(query_HD, d_pooled_HD, SPLIT)
    second_copy_C = tl.arange(0, C) >= C // 2
    second_12C = (tl.arange(0, 2) == 1)[None, :, None]
    d_query_DC = tl.zeros((BLOCK_D, C), tl.float32)
    zeros_GK = tl.zeros((BLOCK_G, 2 * C), tl.float32)
    zeros_GD = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    for first in tl.range(0, length, BLOCK_G, num_stages=STAGES):
        live_G = first + g_G < length
        mask_GD = live_G[:, None] & in_D[None, :]
        seg = load_side(seg_GD + (start + first) * D + at_GD, mask_GD, SPLIT)
        dot_GK = sum_of_parts(product(seg, tl.trans(factor_KD), zeros_GK, SPLIT))
        dot_G2C = tl.reshape(dot_GK, (BLOCK_G, 2, C))
        d_weight_G1C = tl.sum(tl.where(second_12C, 0.0, dot_G2C), axis=1, keep_dims=True)
        score_G1C = tl.sum(tl.where(second_12C, dot_G2C, 0.0), axis=1, keep_dims=True)
        weight_G1C = tl.where(live_G[:, None, None], tl.exp(score_G1C - lse_C[None, None, :]), 0.0)
        d_score_G1C = weight_G1C * (d_weight_G1C - delta_C[None, None, :])
        both_G2C = tl.where(second_12C, d_score_G1C, weight_G1C)
        both_GK = tl.reshape(part(both_G2C, second_copy_C[None, None, :], SPLIT), (BLOCK_G, 2 * C))
        d_score_part_GC = part(tl.sum(d_score_G1C, axis=1), second_copy_C[None, :], SPLIT)
        d_seg_at = d_seg_GD + (start + first) * D + at_GD
        d_seg = zeros_GD
        if ADD:
            d_seg = tl.load(d_seg_at, mask=mask_GD, other=0.0).to(tl.float32)
        d_seg = product(both_GK, factor_KD, d_seg, SPLIT)
        tl.store(d_seg_at, d_seg.to(d_seg_GD.dtype.element_ty), mask=mask_GD)
        d_query_DC = product(tl.trans(seg), d_score_part_GC, d_query_DC, SPLIT)
    # Copies are the parts of d_score; columns of a head's two parts are equal.
    d_query_DH = tl.sum(tl.sum(tl.reshape(d_query_DC, (BLOCK_D, 2, C // 4, 2)), axis=3), axis=1) * 0.5
    d_query_at = d_query_BHD + (sample * H + h_H)[None, :] * D + d_D[:, None]
    d_query_mask = (h_H < H)[None, :] & in_D[:, None]
    tl.store(d_query_at, d_query_DH.to(d_query_BHD.dtype.element_ty), mask=d_query_mask)


def serves(dtype: torch.dtype, H: int, D: int) -> bool:
    """Whether these kernels are for such segments and heads: anything wider leaves them no registers."""
    return dtype == torch.bfloat16 and H <= 8 and triton.next_power_of_2(H) * triton.next_power_of_2(D) <= 1024


def config(H: int, D: int, *, backward: bool) -> dict[str, int]:
    """Tile and launch: by shape, never by timing."""
    block_d = max(16, int(triton.next_power_of_2(D)))
    heads = int(triton.next_power_of_2(H))
    columns = max(8, heads * (4 if backward else 2))
    return {
        "BLOCK_D": block_d, "BLOCK_G": 64 if backward else 32, "C": columns, "STAGES": 1,
        "SPLIT": halves(torch.bfloat16), "num_warps": 4 if backward else 2,
    }  # fmt: skip
