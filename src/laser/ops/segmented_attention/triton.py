"""Segmented target attention in Triton: x is read once, nothing of size [T, H, D] exists, and there are no atomics.

Both kernels are small attentions on tensor cores. A program takes BLOCK_S segments of one history. Its R = BLOCK_S * H
rows are the heads of each segment, all with the sample's query of that head, and a row's gates are zero outside its own
segment: then pooled = gate_RE x_ED, and every gradient is such a product too. The rows repeat each score BLOCK_S times;
a tile of the matrix units has 16 rows anyway, and the kernels are bound by memory.

A program walks its events in steps of BLOCK_E. Backward computes gates again instead of reading them. Where samples
share histories, a backward program takes one step, holds its events, and sums dx over the samples in a fixed order.
Each program leaves a partial sum of dquery and dbias per sample, which a second kernel adds up in order. So equal
inputs give equal bits.

Products keep the precision of ``laser.ops.products``; sums, scores and gates are float32.

Row numbers are int64: a row times D may pass 2^31. Offsets inside one history fit int32.

Legend of shape suffixes: B samples; U histories; T events, packed; E events of a step; G segments, packed; R heads of a
program's segments; N programs; P (sample, backward program) pairs; H heads; D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from laser.ops.products import halves, load_side, product
from laser.ops.segments import SegmentLayout, Tiling

TILE_EVENTS = 128
"""Events of a program, where a segment has fewer."""
STEP_ELEMENTS = 8192
"""Elements of x that a program holds while the samples of a shared history pass."""


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
    STAGES: tl.constexpr,
    SHARED: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Gradients of BLOCK_S segments of one history; partial sums for query and bias.

    SHARED: a history may have several samples; then a program takes one of a tile's STEPS, whose events are held while
    samples pass. Otherwise it has at most one, whose query and gradients are held while all steps pass.
    """
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
    zeros_ED = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)
    begin = tl.load(sample_off_U1 + history)
    end = tl.load(sample_off_U1 + history + 1)
    x_at = (first + e_E)[:, None] * D + d_D[None, :]
    if SHARED:
        live_E = (first + e_E >= start) & (e_E < BLOCK_S * width)
        mask_ED = live_E[:, None] & in_D[None, :]
        own_RE = (segment_R[:, None] == (e_E // width)[None, :]) & live_E[None, :]
        x_ED = load_side(x_TD + x_at, mask_ED, SPLIT)
        d_x_ED = zeros_ED
    if not SHARED and begin == end:
        for step in range(0, BLOCK_S * width, BLOCK_E):
            live_E = (first + e_E + step >= start) & (e_E + step < BLOCK_S * width)
            tl.store(d_x_TD + x_at + step * D, zeros_ED.to(d_x_TD.dtype.element_ty), live_E[:, None] & in_D[None, :])

    for i in range(begin, end):
        sample = tl.load(order_B + i)
        query_at = query_BHD + (sample * H + head_R)[:, None] * D + d_D[None, :]
        query_RD = tl.load(query_at, mask=in_D[None, :], other=0.0)
        oldest = tl.load(seg_off_B1 + sample)
        pooled_R = tl.load(seg_off_B1 + sample + 1) - newer - BLOCK_S + segment_R
        d_pooled_at = d_pooled_GHD + (pooled_R * H + head_R)[:, None] * D + d_D[None, :]
        pooled_mask = ((pooled_R >= oldest) & (r_R < BLOCK_S * H))[:, None] & in_D[None, :]
        d_pooled_RD = load_side(d_pooled_at, pooled_mask, SPLIT)
        d_query_RD = zeros_RD
        d_bias_R = tl.zeros((BLOCK_R,), tl.float32)
        if SHARED:
            gate_RE, d_score_RE = score_gradients(x_ED, query_RD, d_pooled_RD, bias_R, own_RE, SPLIT)
            d_x_ED = event_gradients(gate_RE, d_score_RE, query_RD, d_pooled_RD, d_x_ED, SPLIT)
            d_query_RD = product(d_score_RE, x_ED, d_query_RD, SPLIT)
            d_bias_R += tl.sum(d_score_RE, axis=1)
        else:
            for step in tl.range(0, BLOCK_S * width, BLOCK_E, num_stages=STAGES):
                now_E = (first + e_E + step >= start) & (e_E + step < BLOCK_S * width)
                now_ED = now_E[:, None] & in_D[None, :]
                step_ED = load_side(x_TD + x_at + step * D, now_ED, SPLIT)
                mine_RE = (segment_R[:, None] == ((e_E + step) // width)[None, :]) & now_E[None, :]
                step_gate_RE, step_score_RE = score_gradients(step_ED, query_RD, d_pooled_RD, bias_R, mine_RE, SPLIT)
                d_step_ED = event_gradients(step_gate_RE, step_score_RE, query_RD, d_pooled_RD, zeros_ED, SPLIT)
                tl.store(d_x_TD + x_at + step * D, d_step_ED.to(d_x_TD.dtype.element_ty), mask=now_ED)
                d_query_RD = product(step_score_RE, step_ED, d_query_RD, SPLIT)
                d_bias_R += tl.sum(step_score_RE, axis=1)
        pair = tl.load(pair_off_B1 + sample) + part * STEPS + tl.program_id(0) % STEPS
        store_partial(d_query_PHD, d_bias_PH, pair, d_query_RD, d_bias_R, head_R, d_D, in_D, H, D)
    if SHARED:
        tl.store(d_x_TD + x_at, d_x_ED.to(d_x_TD.dtype.element_ty), mask=mask_ED)


@triton.jit
def reduce_kernel(
    d_query_PHD,
    d_bias_PH,
    pair_off_B1,
    d_query_BHD,
    d_bias_BH,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Add up the partial sums of one sample and head, in the order of its tiles."""
    sample = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    first = tl.load(pair_off_B1 + sample)
    last = tl.load(pair_off_B1 + sample + 1)
    p_P = tl.arange(0, BLOCK_P)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    query_PD = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    bias_P = tl.zeros((BLOCK_P,), tl.float32)
    for pair in range(first, last, BLOCK_P):
        live_P = pair + p_P < last
        row_P = (pair + p_P) * H + h
        mask_PD = live_P[:, None] & in_D[None, :]
        query_PD += tl.load(d_query_PHD + row_P[:, None] * D + d_D[None, :], mask=mask_PD, other=0.0)
        bias_P += tl.load(d_bias_PH + row_P, mask=live_P, other=0.0)
    d_query_D = tl.sum(query_PD, axis=0).to(d_query_BHD.dtype.element_ty)
    tl.store(d_query_BHD + (sample * H + h) * D + d_D, d_query_D, mask=in_D)
    tl.store(d_bias_BH + sample * H + h, tl.sum(bias_P, axis=0))


def tile_config(H: int, D: int, width: int) -> dict[str, int]:
    """Segments of a tile, and events of a step.

    Chosen by shape and never by timing: another tile is another order of summation, and so other bits.
    """
    block_d = max(16, int(triton.next_power_of_2(D)))
    rows = max(16, int(triton.next_power_of_2(H)))
    segments = max(1, min(rows // H, TILE_EVENTS // width))
    return {"BLOCK_D": block_d, "BLOCK_S": segments, "BLOCK_R": rows, "BLOCK_E": 16}


def forward_config(H: int, D: int, width: int, split: bool) -> dict[str, int]:
    """Tile and launch of the forward kernel."""
    warps = 4 if D > 128 else 1 if split else 2
    return tile_config(H, D, width) | {"STAGES": 4 if split else 3, "num_warps": warps}


def backward_config(H: int, D: int, width: int, split: bool, shared: bool) -> dict[str, int]:
    """Tile and launch of the backward kernel."""
    config = tile_config(H, D, width)
    if split and D <= 128:
        config["maxnreg"] = 168  # leaves room for more programs than the registers that the compiler would take
    if not shared:
        return config | {"STAGES": 3, "num_warps": 2 if D <= 128 else 4}
    most = max(16, min(64, STEP_ELEMENTS // config["BLOCK_D"]))
    segments = max(1, min(config["BLOCK_S"], most // width))
    events = max(16, min(most, int(triton.next_power_of_2(segments * width))))
    return config | {"BLOCK_S": segments, "BLOCK_E": events, "STAGES": 1, "num_warps": 4}


def tiling(dtype: torch.dtype, H: int, D: int, width: int, shared: bool) -> Tiling:
    """Tiles that the kernels expect of a layout."""
    split = halves(dtype)
    events = tile_config(H, D, width)["BLOCK_S"] * width
    config = backward_config(H, D, width, split, shared)
    backward_events = config["BLOCK_S"] * width
    return Tiling(events, backward_events, -(-backward_events // config["BLOCK_E"]) if shared else 1, shared)


def forward(
    x_TD: Tensor, query_BHD: Tensor, bias_H: Tensor, layout: SegmentLayout, *, keep_gates: bool = True
) -> tuple[Tensor, Tensor]:
    """Pooled segments [G, H, D] in the dtype of x, and float32 gates [E, H] if asked for; inputs contiguous."""
    H, D = query_BHD.shape[1:]
    parts, size, split = layout.parts, layout.size, halves(x_TD.dtype)
    config = forward_config(H, D, size.width, split)
    # Rows that belong to no sample are read by what comes next.
    new = x_TD.new_zeros if size.spare else x_TD.new_empty
    pooled_GHD = new(size.num_segments, H, D)
    gate_EH = x_TD.new_empty(size.num_events if keep_gates else 0, H, dtype=torch.float32)
    if size.num_segments:
        launch: Any = forward_kernel[(len(parts.forward_history_of_N),)]
        launch(
            x_TD,
            query_BHD,
            bias_H,
            parts.off_U1,
            parts.seg_off_B1,
            parts.event_off_B1,
            parts.order_B,
            parts.sample_off_U1,
            parts.forward_tile_off_U1,
            parts.forward_history_of_N,
            pooled_GHD,
            gate_EH,
            size.width,
            H=H,
            D=D,
            ONE_STEP=config["BLOCK_S"] * size.width <= config["BLOCK_E"],
            SPLIT=split,
            KEEP_GATES=keep_gates,
            **config,
        )
    return pooled_GHD, gate_EH


def backward(
    d_pooled_GHD: Tensor, x_TD: Tensor, query_BHD: Tensor, bias_H: Tensor, gate_EH: Tensor, layout: SegmentLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [T, D], query [B, H, D] (each in its dtype) and bias [H] (float32); inputs contiguous.

    ``gate_EH`` is not read: computing gates again costs less than memory does.
    """
    B, H, D = query_BHD.shape
    parts, size, split = layout.parts, layout.size, halves(x_TD.dtype)
    shared = size.most_samples > 1
    config = backward_config(H, D, size.width, split, shared)
    steps = tiling(x_TD.dtype, H, D, size.width, shared).backward_steps
    d_x_TD, d_query_BHD = torch.empty_like(x_TD), torch.empty_like(query_BHD)
    d_query_PHD = x_TD.new_empty(size.num_pairs, H, D, dtype=torch.float32)
    d_bias_PH = x_TD.new_empty(size.num_pairs, H, dtype=torch.float32)
    d_bias_BH = x_TD.new_empty(B, H, dtype=torch.float32)
    if num_tiles := len(parts.backward_history_of_M):
        launch: Any = backward_kernel[(num_tiles * steps,)]
        launch(
            x_TD,
            query_BHD,
            bias_H,
            d_pooled_GHD,
            parts.off_U1,
            parts.seg_off_B1,
            parts.order_B,
            parts.sample_off_U1,
            parts.backward_tile_off_U1,
            parts.backward_history_of_M,
            parts.pair_off_B1,
            d_x_TD,
            d_query_PHD,
            d_bias_PH,
            size.width,
            H=H,
            D=D,
            STEPS=steps,
            SHARED=shared,
            SPLIT=split,
            **config,
        )
    if B:
        block_p = max(1, min(16, 2048 // config["BLOCK_D"]))
        launch: Any = reduce_kernel[(B, H)]
        launch(
            d_query_PHD,
            d_bias_PH,
            parts.pair_off_B1,
            d_query_BHD,
            d_bias_BH,
            H=H,
            D=D,
            BLOCK_D=config["BLOCK_D"],
            BLOCK_P=block_p,
            num_warps=4,
        )
    return d_x_TD, d_query_BHD, d_bias_BH.sum(0)
