# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
# ruff: noqa: RUF005  (Triton concatenates tuples, it does not unpack them)
"""Segmented target attention where no history has several samples: every event is read once and used at once.

A row is a segment, and the lanes that hold a row hold all of its width, so that a score is a sum over lanes, and a
pooled segment needs none. A program takes GROUPS times BLOCK_S neighbouring segments of one history, and reads STEP
events of each row before it uses them, so that many reads are under way: the kernels are bound by memory, and nothing
here is a matrix product, whose tiles would be filled with zeros. All arithmetic is float32, whatever the events are.

    newest event -> |
    row 1:  e e e e |      a program's segments, BLOCK_S = 2; row 0 may lie before the history, then it is not read
    row 0:  . . e e |

Backward computes gates again instead of reading them.

Legend of shape suffixes: B samples; U histories; T events, packed; G segments, packed; S segments (rows) of a group;
E events, once per sample that sees them; N programs; P (sample, backward program) pairs; H heads; D width.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gates(x_SD, query_D, bias, live_S):
    """One head's gates of an event of each segment; zero where there is none."""
    score_S = tl.sum(x_SD * query_D[None, :], axis=1) + bias
    return tl.where(live_S, 1.0 / (1.0 + tl.exp(-score_S)), 0.0)


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
    GROUPS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
    KEEP_GATES: tl.constexpr,
):
    """Pool and gate some segments of one history for its sample, if it has one."""
    tile = tl.program_id(0).to(tl.int64)
    history = tl.load(history_of_N + tile)
    begin = tl.load(sample_off_U1 + history)
    start = tl.load(off_U1 + history)
    end = tl.load(off_U1 + history + 1)
    newest = (tile - tl.load(tile_off_U1 + history)) * (BLOCK_S * GROUPS)
    s_S = tl.arange(0, BLOCK_S)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    if begin < tl.load(sample_off_U1 + history + 1):
        sample = tl.load(order_B + begin)
        query = ()
        bias = ()
        for h in tl.static_range(H):
            query_at = query_BHD + (sample * H + h) * D + d_D
            query = query + (tl.load(query_at, mask=in_D, other=0.0).to(tl.float32),)
            bias = bias + (tl.load(bias_H + h).to(tl.float32),)
        last = tl.load(seg_off_B1 + sample + 1)
        gate_at = gate_EH + (tl.load(event_off_B1 + sample) - start) * H
        segments = tl.cdiv(end - start, width) - newest
        for group in range(0, tl.minimum(GROUPS, tl.cdiv(segments, BLOCK_S))):
            to_newest_S = newest + (group + 1) * BLOCK_S - s_S
            first_S = end - to_newest_S * width
            missing_S = start - first_S  # events that the oldest segment lacks; more than it could have: no segment
            x_at_SD = x_TD + first_S[:, None] * D + d_D[None, :]
            pooled = ()
            for _h in tl.static_range(H):
                pooled = pooled + (tl.zeros((BLOCK_S, BLOCK_D), tl.float32),)
            for step in tl.range(0, width, STEP, num_stages=STAGES):
                x = ()
                for e in tl.static_range(STEP):
                    live_S = (step + e >= missing_S) & (step + e < width)
                    mask_SD = live_S[:, None] & in_D[None, :]
                    x = x + (tl.load(x_at_SD + (step + e) * D, mask=mask_SD, other=0.0),)
                for e in tl.static_range(STEP):
                    live_S = (step + e >= missing_S) & (step + e < width)
                    x_SD = x[e].to(tl.float32)
                    more = ()
                    for h in tl.static_range(H):
                        gate_S = gates(x_SD, query[h], bias[h], live_S)
                        if KEEP_GATES:
                            tl.store(gate_at + (first_S + step + e) * H + h, gate_S, mask=live_S)
                        more = more + (pooled[h] + gate_S[:, None] * x_SD,)
                    pooled = more
            pooled_at_SD = pooled_GHD + (last - to_newest_S)[:, None] * H * D + d_D[None, :]
            pooled_mask = (missing_S < width)[:, None] & in_D[None, :]
            for h in tl.static_range(H):
                tl.store(pooled_at_SD + h * D, pooled[h].to(pooled_GHD.dtype.element_ty), mask=pooled_mask)


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
    GROUPS: tl.constexpr,
    STEP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of some segments of one history, zero if it has no sample; partial sums for query and bias."""
    tile = tl.program_id(0).to(tl.int64)
    history = tl.load(history_of_N + tile)
    begin = tl.load(sample_off_U1 + history)
    has_sample = begin < tl.load(sample_off_U1 + history + 1)
    start = tl.load(off_U1 + history)
    end = tl.load(off_U1 + history + 1)
    part = tile - tl.load(tile_off_U1 + history)
    newest = part * (BLOCK_S * GROUPS)
    s_S = tl.arange(0, BLOCK_S)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    sample = tl.load(order_B + begin, mask=has_sample, other=0)
    query = ()
    bias = ()
    d_query = ()
    d_bias = ()
    for h in tl.static_range(H):
        query_at = query_BHD + (sample * H + h) * D + d_D
        query = query + (tl.load(query_at, mask=in_D & has_sample, other=0.0).to(tl.float32),)
        bias = bias + (tl.load(bias_H + h).to(tl.float32),)
        d_query = d_query + (tl.zeros((BLOCK_S, BLOCK_D), tl.float32),)
        d_bias = d_bias + (tl.zeros((BLOCK_S,), tl.float32),)
    last = tl.load(seg_off_B1 + sample + 1, mask=has_sample, other=0)
    segments = tl.cdiv(end - start, width) - newest
    for group in range(0, tl.minimum(GROUPS, tl.cdiv(segments, BLOCK_S))):
        to_newest_S = newest + (group + 1) * BLOCK_S - s_S
        first_S = end - to_newest_S * width
        missing_S = start - first_S
        at_SD = first_S[:, None] * D + d_D[None, :]
        pooled_at_SD = d_pooled_GHD + (last - to_newest_S)[:, None] * H * D + d_D[None, :]
        pooled_mask = ((missing_S < width) & has_sample)[:, None] & in_D[None, :]
        d_pooled = ()
        for h in tl.static_range(H):
            d_pooled = d_pooled + (tl.load(pooled_at_SD + h * D, mask=pooled_mask, other=0.0).to(tl.float32),)
        for step in tl.range(0, width, STEP, num_stages=STAGES):
            x = ()
            for e in tl.static_range(STEP):
                live_S = (step + e >= missing_S) & (step + e < width)
                mask_SD = (live_S & has_sample)[:, None] & in_D[None, :]
                x = x + (tl.load(x_TD + at_SD + (step + e) * D, mask=mask_SD, other=0.0),)
            for e in tl.static_range(STEP):
                live_S = (step + e >= missing_S) & (step + e < width)
                x_SD = x[e].to(tl.float32)
                d_x_SD = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
                more_query = ()
                more_bias = ()
                for h in tl.static_range(H):
                    gate_S = gates(x_SD, query[h], bias[h], live_S)
                    d_score_S = tl.sum(x_SD * d_pooled[h], axis=1) * gate_S * (1.0 - gate_S)
                    d_x_SD += gate_S[:, None] * d_pooled[h]
                    d_x_SD += d_score_S[:, None] * query[h][None, :]
                    more_query = more_query + (d_query[h] + d_score_S[:, None] * x_SD,)
                    more_bias = more_bias + (d_bias[h] + d_score_S,)
                d_query = more_query
                d_bias = more_bias
                d_x_at_SD = d_x_TD + at_SD + (step + e) * D
                tl.store(d_x_at_SD, d_x_SD.to(d_x_TD.dtype.element_ty), mask=live_S[:, None] & in_D[None, :])
    if has_sample:
        pair = tl.load(pair_off_B1 + sample) + part
        for h in tl.static_range(H):
            tl.store(d_query_PHD + (pair * H + h) * D + d_D, tl.sum(d_query[h], axis=0), mask=in_D)
            tl.store(d_bias_PH + pair * H + h, tl.sum(d_bias[h], axis=0))
