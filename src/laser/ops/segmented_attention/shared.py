# Kernels assign and read names under the same compile-time condition.
# pyrefly: ignore-errors
"""Segmented target attention where histories may have several samples: small attentions on tensor cores.

A program takes BLOCK_S segments of one history. Its R = BLOCK_S * H rows are the heads of each segment, all with the
sample's query of that head, and a row's gates are zero outside its own segment: then pooled = gate_RE x_ED, and every
gradient is such a product too. The rows repeat each score BLOCK_S times; a tile of the matrix units has 16 rows anyway.

Forward walks its events in steps of BLOCK_E. A backward program takes one step, computes gates again instead of reading
them, holds its events, and sums dx over the samples in a fixed order.

Products keep the precision of ``laser.ops.products``; sums, scores and gates are float32.

Legend of shape suffixes: B samples; U histories; T events, packed; E events of a step; G segments, packed; R heads of a
program's segments; N programs; P (sample, backward program) pairs; H heads; D width.
"""

from __future__ import annotations

import triton
import triton.language as tl

from laser.ops.products import load_side, product


@triton.jit
def gates(x_ED, query_RD, bias_R, own_RE, SPLIT: tl.constexpr):
    """Gates of each row's head for the events of its segment; zero elsewhere."""
    zeros_RE = tl.zeros(own_RE.shape, tl.float32)
    score_RE = product(query_RD, tl.trans(x_ED), zeros_RE, SPLIT) + bias_R[:, None]
    return tl.where(own_RE, 1.0 / (1.0 + tl.exp(-score_RE)), 0.0)


@triton.jit
def forward_kernel(
    x_TD,
    query_BHD,
    bias_H,
    off_U1,
    seg_off_B1,
    event_off_B1,
    order_B,
    sample_off_U1,
    tile_off_U1,
    history_of_N,
    pooled_GHD,
    gate_EH,
    width,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
    ONE_STEP: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    KEEP_GATES: tl.constexpr,
):
    """Pool and gate BLOCK_S segments of one history, for each of its samples."""
    tile = tl.program_id(0).to(tl.int64)
    history = tl.load(history_of_N + tile)
    start = tl.load(off_U1 + history)
    # Tiles are numbered from the newest; the first rows of the oldest may lie before the history.
    newer = (tile - tl.load(tile_off_U1 + history)) * BLOCK_S
    first = tl.load(off_U1 + history + 1) - (newer + BLOCK_S) * width
    r_R = tl.arange(0, BLOCK_R)
    head_R = r_R % H
    segment_R = r_R // H
    e_E = tl.arange(0, BLOCK_E)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    bias_R = tl.load(bias_H + head_R).to(tl.float32)
    row_E = first + e_E
    if ONE_STEP:
        live_E = (row_E >= start) & (e_E < BLOCK_S * width)
        x_ED = load_side(x_TD + row_E[:, None] * D + d_D[None, :], live_E[:, None] & in_D[None, :], SPLIT)

    for i in range(tl.load(sample_off_U1 + history), tl.load(sample_off_U1 + history + 1)):
        sample = tl.load(order_B + i)
        query_at = query_BHD + (sample * H + head_R)[:, None] * D + d_D[None, :]
        query_RD = tl.load(query_at, mask=in_D[None, :], other=0.0)
        gate_at = gate_EH + (tl.load(event_off_B1 + sample) - start + row_E)[None, :] * H + head_R[:, None]
        sum_RD = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
        if ONE_STEP:
            own_RE = (segment_R[:, None] == (e_E // width)[None, :]) & live_E[None, :]
            gate_RE = gates(x_ED, query_RD, bias_R, own_RE, SPLIT)
            if KEEP_GATES:
                tl.store(gate_at, gate_RE, mask=own_RE)
            sum_RD = product(gate_RE, x_ED, sum_RD, SPLIT)
        else:
            for step in tl.range(0, BLOCK_S * width, BLOCK_E, num_stages=STAGES):
                row_at_E = row_E + step
                now_E = (row_at_E >= start) & (e_E + step < BLOCK_S * width)
                x_at = x_TD + row_at_E[:, None] * D + d_D[None, :]
                now_ED = load_side(x_at, now_E[:, None] & in_D[None, :], SPLIT)
                own_RE = (segment_R[:, None] == ((e_E + step) // width)[None, :]) & now_E[None, :]
                gate_RE = gates(now_ED, query_RD, bias_R, own_RE, SPLIT)
                if KEEP_GATES:
                    tl.store(gate_at + step * H, gate_RE, mask=own_RE)
                sum_RD = product(gate_RE, now_ED, sum_RD, SPLIT)
        oldest = tl.load(seg_off_B1 + sample)
        pooled_R = tl.load(seg_off_B1 + sample + 1) - newer - BLOCK_S + segment_R
        pooled_at = pooled_GHD + (pooled_R * H + head_R)[:, None] * D + d_D[None, :]
        pooled_mask = ((pooled_R >= oldest) & (r_R < BLOCK_S * H))[:, None] & in_D[None, :]
        tl.store(pooled_at, sum_RD.to(pooled_GHD.dtype.element_ty), mask=pooled_mask)


@triton.jit
def score_gradients(x_ED, query_RD, d_pooled_RD, bias_R, own_RE, SPLIT: tl.constexpr):
    """Gates of a step and the gradients of their scores."""
    gate_RE = gates(x_ED, query_RD, bias_R, own_RE, SPLIT)
    zeros_RE = tl.zeros(own_RE.shape, tl.float32)
    d_score_RE = product(d_pooled_RD, tl.trans(x_ED), zeros_RE, SPLIT) * gate_RE * (1.0 - gate_RE)
    return gate_RE, d_score_RE


@triton.jit
def event_gradients(gate_RE, d_score_RE, query_RD, d_pooled_RD, d_x_ED, SPLIT: tl.constexpr):
    """d_x plus what one sample adds to it."""
    d_x_ED = product(tl.trans(gate_RE), d_pooled_RD, d_x_ED, SPLIT)
    d_score_ER = tl.trans(d_score_RE)
    if SPLIT:
        high_RD = query_RD.to(tl.bfloat16)
        d_x_ED = product(d_score_ER, high_RD, d_x_ED, SPLIT)
        if query_RD.dtype != tl.bfloat16:
            low_RD = (query_RD.to(tl.float32) - high_RD.to(tl.float32)).to(tl.bfloat16)
            d_x_ED = tl.dot(d_score_ER.to(tl.bfloat16), low_RD, d_x_ED)
    else:
        d_x_ED = product(d_score_ER, query_RD.to(tl.float32), d_x_ED, SPLIT)
    return d_x_ED


@triton.jit
def store_partial(
    d_query_PHD, d_bias_PH, pair, d_query_RD, d_bias_R, head_R, d_D, in_D, H: tl.constexpr, D: tl.constexpr
):
    """One sample's share of d_query and d_bias: rows of one head added up."""
    for h in tl.static_range(H):
        d_query_D = tl.sum(tl.where((head_R == h)[:, None], d_query_RD, 0.0), axis=0)
        tl.store(d_query_PHD + (pair * H + h) * D + d_D, d_query_D, mask=in_D)
        tl.store(d_bias_PH + pair * H + h, tl.sum(tl.where(head_R == h, d_bias_R, 0.0), axis=0))


@triton.jit
def backward_kernel(
    x_TD,
    query_BHD,
    bias_H,
    d_pooled_GHD,
    off_U1,
    seg_off_B1,
    order_B,
    sample_off_U1,
    tile_off_U1,
    history_of_N,
    pair_off_B1,
    d_x_TD,
    d_query_PHD,
    d_bias_PH,
    width,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
    STEPS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Gradients of one of a tile's STEPS, whose events are held while samples pass; partial sums for query and bias."""
    tile = (tl.program_id(0) // STEPS).to(tl.int64)
    history = tl.load(history_of_N + tile)
    start = tl.load(off_U1 + history)
    part = tile - tl.load(tile_off_U1 + history)
    newer = part * BLOCK_S
    first = tl.load(off_U1 + history + 1) - (newer + BLOCK_S) * width
    e_E = (tl.program_id(0) % STEPS) * BLOCK_E + tl.arange(0, BLOCK_E)
    r_R = tl.arange(0, BLOCK_R)
    head_R = r_R % H
    segment_R = r_R // H
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    bias_R = tl.load(bias_H + head_R).to(tl.float32)
    zeros_RD = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    begin = tl.load(sample_off_U1 + history)
    end = tl.load(sample_off_U1 + history + 1)
    x_at = (first + e_E)[:, None] * D + d_D[None, :]
    live_E = (first + e_E >= start) & (e_E < BLOCK_S * width)
    mask_ED = live_E[:, None] & in_D[None, :]
    own_RE = (segment_R[:, None] == (e_E // width)[None, :]) & live_E[None, :]
    x_ED = load_side(x_TD + x_at, mask_ED, SPLIT)
    d_x_ED = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)

    for i in range(begin, end):
        sample = tl.load(order_B + i)
        query_at = query_BHD + (sample * H + head_R)[:, None] * D + d_D[None, :]
        query_RD = tl.load(query_at, mask=in_D[None, :], other=0.0)
        oldest = tl.load(seg_off_B1 + sample)
        pooled_R = tl.load(seg_off_B1 + sample + 1) - newer - BLOCK_S + segment_R
        d_pooled_at = d_pooled_GHD + (pooled_R * H + head_R)[:, None] * D + d_D[None, :]
        pooled_mask = ((pooled_R >= oldest) & (r_R < BLOCK_S * H))[:, None] & in_D[None, :]
        d_pooled_RD = load_side(d_pooled_at, pooled_mask, SPLIT)
        gate_RE, d_score_RE = score_gradients(x_ED, query_RD, d_pooled_RD, bias_R, own_RE, SPLIT)
        d_x_ED = event_gradients(gate_RE, d_score_RE, query_RD, d_pooled_RD, d_x_ED, SPLIT)
        d_query_RD = product(d_score_RE, x_ED, zeros_RD, SPLIT)
        d_bias_R = tl.sum(d_score_RE, axis=1)
        pair = tl.load(pair_off_B1 + sample) + part * STEPS + tl.program_id(0) % STEPS
        store_partial(d_query_PHD, d_bias_PH, pair, d_query_RD, d_bias_R, head_R, d_D, in_D, H, D)
    tl.store(d_x_TD + x_at, d_x_ED.to(d_x_TD.dtype.element_ty), mask=mask_ED)
