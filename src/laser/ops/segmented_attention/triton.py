# ruff: noqa: RUF005  (Triton concatenates tuples, it does not unpack them)
"""Segmented target attention in Triton: x is read once, nothing of size [T, H, D] exists, and there are no atomics.

Forward: a program takes BLOCK_S segments of one history and walks their width one event at a time, so that any width
fits and no lane is spent on rounding it up. Backward: a program takes a tile of
consecutive events, whatever segments they fall in, holds x and dx in registers and loops over the samples that share
the history in a fixed order; each leaves a partial sum of dquery and dbias, which a second kernel adds up in order.
So equal inputs give equal bits. Sums, scores and gates are float32.

Row numbers are int64: a row times D may pass 2^31. Offsets inside one history fit int32.

Legend of shape suffixes: B samples; U histories; T events, packed; E events per sample, packed (in kernels: of one
tile); G segments, packed; S segments of one program; N tiles; P (sample, tile) pairs; H heads; D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from laser.ops.segments import SegmentLayout, offsets, tiles


@triton.jit(do_not_specialize=["num_histories"])
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
    num_histories,
    width,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Pool and gate BLOCK_S segments of one history, for each of its samples."""
    tile = tl.program_id(0).to(tl.int64)
    history = tl.load(history_of_N + tile)
    if history >= num_histories:
        return
    start = tl.load(off_U1 + history)
    end = tl.load(off_U1 + history + 1)
    # Segments are numbered from the newest; the first row of the oldest may lie before the history.
    segment_S = (tile - tl.load(tile_off_U1 + history)) * BLOCK_S + tl.arange(0, BLOCK_S)
    first_S = end - (segment_S + 1) * width
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    # One value a head in a tuple: as a tensor dimension, heads make Triton split a row over warps.
    bias = ()
    for h in tl.static_range(H):
        bias = bias + (tl.load(bias_H + h).to(tl.float32),)

    for i in range(tl.load(sample_off_U1 + history), tl.load(sample_off_U1 + history + 1)):
        sample = tl.load(order_B + i)
        gate_row = tl.load(event_off_B1 + sample) - start
        query_H = ()
        sum_H = ()
        for h in tl.static_range(H):
            query_D = tl.load(query_BHD + (sample * H + h) * D + d_D, mask=in_D, other=0.0)
            query_H = query_H + (query_D.to(tl.float32)[None, :],)
            sum_H = sum_H + (tl.zeros((BLOCK_S, BLOCK_D), tl.float32),)
        for j in tl.range(0, width, num_stages=STAGES):
            row_S = first_S + j
            live_S = row_S >= start
            x_at = x_TD + row_S[:, None] * D + d_D[None, :]
            x_SD = tl.load(x_at, mask=live_S[:, None] & in_D[None, :], other=0.0).to(tl.float32)
            next_H = ()
            for h in tl.static_range(H):
                score_S = tl.sum(x_SD * query_H[h], axis=1) + bias[h]
                gate_S = tl.where(live_S, 1.0 / (1.0 + tl.exp(-score_S)), 0.0)
                tl.store(gate_EH + (gate_row + row_S) * H + h, gate_S, mask=live_S)
                next_H = next_H + (sum_H[h] + gate_S[:, None] * x_SD,)
            sum_H = next_H
        pooled_S = tl.load(seg_off_B1 + sample + 1) - 1 - segment_S
        pooled_mask = (first_S + width > start)[:, None] & in_D[None, :]
        for h in tl.static_range(H):
            pooled_at = pooled_GHD + (pooled_S * H + h)[:, None] * D + d_D[None, :]
            tl.store(pooled_at, sum_H[h].to(pooled_GHD.dtype.element_ty), mask=pooled_mask)


@triton.jit(do_not_specialize=["num_histories"])
def backward_kernel(
    x_TD,
    query_BHD,
    gate_EH,
    d_pooled_GHD,
    off_U1,
    seg_off_B1,
    event_off_B1,
    order_B,
    sample_off_U1,
    tile_off_U1,
    history_of_N,
    pair_off_B1,
    d_x_TD,
    d_query_PHD,
    d_bias_PH,
    num_histories,
    width,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Gradients of BLOCK_E events of one history, summed over its samples; partial sums for query and bias."""
    n = tl.program_id(0).to(tl.int64)
    history = tl.load(history_of_N + n)
    if history >= num_histories:
        return
    start = tl.load(off_U1 + history)
    length = (tl.load(off_U1 + history + 1) - start).to(tl.int32)
    tile = (n - tl.load(tile_off_U1 + history)).to(tl.int32)
    event_E = tile * BLOCK_E + tl.arange(0, BLOCK_E)
    live_E = event_E < length
    from_newest_E = (length - 1 - event_E) // width
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    mask_ED = live_E[:, None] & in_D[None, :]
    x_at = (start + event_E)[:, None] * D + d_D[None, :]
    x_ED = tl.load(x_TD + x_at, mask=mask_ED, other=0.0).to(tl.float32)
    d_x_ED = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)

    for i in range(tl.load(sample_off_U1 + history), tl.load(sample_off_U1 + history + 1)):
        sample = tl.load(order_B + i)
        segment_E = tl.load(seg_off_B1 + sample + 1) - 1 - from_newest_E
        gate_E_at = gate_EH + (tl.load(event_off_B1 + sample) + event_E) * H
        pair = tl.load(pair_off_B1 + sample) + tile
        for h in tl.static_range(H):
            query_D = tl.load(query_BHD + (sample * H + h) * D + d_D, mask=in_D, other=0.0).to(tl.float32)
            d_pooled_at = d_pooled_GHD + (segment_E * H + h)[:, None] * D + d_D[None, :]
            d_pooled_ED = tl.load(d_pooled_at, mask=mask_ED, other=0.0).to(tl.float32)
            gate_E = tl.load(gate_E_at + h, mask=live_E, other=0.0)
            d_score_E = tl.sum(x_ED * d_pooled_ED, axis=1) * gate_E * (1.0 - gate_E)
            d_x_ED += gate_E[:, None] * d_pooled_ED + d_score_E[:, None] * query_D[None, :]
            d_query_D = tl.sum(d_score_E[:, None] * x_ED, axis=0)
            tl.store(d_query_PHD + (pair * H + h) * D + d_D, d_query_D, mask=in_D)
            tl.store(d_bias_PH + pair * H + h, tl.sum(d_score_E, axis=0))
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


def forward_config(H: int, D: int) -> dict[str, int]:
    """Tile and launch of the forward kernel.

    Chosen by shape and never by timing: another tile is another order of summation, and so other bits.
    """
    block_d = int(triton.next_power_of_2(D))
    segments = max(1, min(32, 4096 // (int(triton.next_power_of_2(H)) * block_d)))
    return {"BLOCK_D": block_d, "BLOCK_S": segments, "STAGES": 3, "num_warps": 4}


def backward_config(D: int) -> dict[str, int]:
    """Tile and launch of the backward kernel."""
    block_d = int(triton.next_power_of_2(D))
    events = max(4, min(64, 8192 // block_d))
    return {"BLOCK_D": block_d, "BLOCK_E": events, "num_warps": 8 if events * block_d >= 8192 else 4}


def forward(
    x_TD: Tensor, query_BHD: Tensor, bias_H: Tensor, layout: SegmentLayout, config: dict[str, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Pooled segments [G, H, D] in the dtype of x, and float32 gates [E, H]; inputs contiguous."""
    H, D = query_BHD.shape[1:]
    config = config or forward_config(H, D)
    pooled_GHD = x_TD.new_empty(layout.num_segments, H, D)
    gate_EH = x_TD.new_empty(layout.num_events, H, dtype=torch.float32)
    events = config["BLOCK_S"] * layout.width
    tile_off_U1, history_of_N, bound = tiles(layout.off_U1, len(x_TD), events)
    if len(query_BHD) and bound:
        launch: Any = forward_kernel[(bound,)]
        launch(
            x_TD,
            query_BHD,
            bias_H,
            layout.off_U1,
            layout.seg_off_B1,
            layout.event_off_B1,
            layout.order_B,
            layout.sample_off_U1,
            tile_off_U1,
            history_of_N,
            pooled_GHD,
            gate_EH,
            len(layout.off_U1) - 1,
            layout.width,
            H=H,
            D=D,
            **config,
        )
    return pooled_GHD, gate_EH


def backward(
    d_pooled_GHD: Tensor,
    x_TD: Tensor,
    query_BHD: Tensor,
    gate_EH: Tensor,
    layout: SegmentLayout,
    config: dict[str, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [T, D], query [B, H, D] (each in its dtype) and bias [H] (float32); inputs contiguous."""
    B, H, D = query_BHD.shape
    config = config or backward_config(D)
    tile_off_U1, history_of_N, bound = tiles(layout.off_U1, len(x_TD), config["BLOCK_E"])
    pair_off_B1 = offsets(tile_off_U1.diff()[layout.history_of_B])
    num_pairs = B + layout.num_events // config["BLOCK_E"]
    d_x_TD, d_query_BHD = torch.empty_like(x_TD), torch.empty_like(query_BHD)
    d_query_PHD = x_TD.new_empty(num_pairs, H, D, dtype=torch.float32)
    d_bias_PH = x_TD.new_empty(num_pairs, H, dtype=torch.float32)
    d_bias_BH = x_TD.new_empty(B, H, dtype=torch.float32)
    if bound:
        launch: Any = backward_kernel[(bound,)]
        launch(
            x_TD,
            query_BHD,
            gate_EH,
            d_pooled_GHD,
            layout.off_U1,
            layout.seg_off_B1,
            layout.event_off_B1,
            layout.order_B,
            layout.sample_off_U1,
            tile_off_U1,
            history_of_N,
            pair_off_B1,
            d_x_TD,
            d_query_PHD,
            d_bias_PH,
            len(layout.off_U1) - 1,
            layout.width,
            H=H,
            D=D,
            **config,
        )
    if B:
        block_p = max(1, min(16, 2048 // config["BLOCK_D"]))
        launch: Any = reduce_kernel[(B, H)]
        launch(
            d_query_PHD,
            d_bias_PH,
            pair_off_B1,
            d_query_BHD,
            d_bias_BH,
            H=H,
            D=D,
            BLOCK_D=config["BLOCK_D"],
            BLOCK_P=block_p,
            num_warps=4,
        )
    return d_x_TD, d_query_BHD, d_bias_BH.sum(0)
