# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""Gradients of few rows that many events name: one pass over the gradients of all events, without a sort.

A row's gradient is a sum over events, so that all of them are a product, d_rows = A d_sum, where A [V, T] is how often
(times which weight and scale) an event names a row. A program takes a stretch of EVENTS events in steps of BLOCK_E: it
makes its part of A by comparing indices with row numbers, multiplies on tensor cores, and leaves a float32 partial sum
of every row. A second kernel adds these up, in their order; no atomics, so that equal inputs give equal bits.

Dropped events (scale 0) are not read. Under a dropout all others of a stretch have one scale: A is then of whole numbers,
and the sum is scaled. Where scales differ, or slots have weights, A is a sum of two bfloat16 (``laser.ops.products``).

Legend of shape suffixes: T events, packed; E events of a step; S slots of an event; V rows (in stretch_kernel: of its
tile); N programs, one a stretch (in add_kernel: of a tile); D width (of one program).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from laser.ops.products import halves, load_right, product

PROGRAMS = 512
"""At the most, unless stretches would be longer than MOST_EVENTS. A constant, as other stretches are another order of
summation, and so other bits."""
MOST_EVENTS = 8192


@triton.jit
def stretch_sum(
    d_sum_TD,
    index_ST,
    weight_ST,
    scale_T,
    partial_NVD,
    num_events,
    first_row,
    num_rows,
    scale,
    S: tl.constexpr,
    D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    EVENTS: tl.constexpr,
    STAGES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    WHOLE: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Partial sum of one stretch; WHOLE: no factors but ``scale``, which all events have that are not dropped."""
    first = tl.program_id(0).to(tl.int64) * EVENTS
    num_here = tl.minimum(num_events - first, EVENTS).to(tl.int32)
    v_V = tl.arange(0, BLOCK_V)
    d_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total_VD = tl.zeros((BLOCK_V, BLOCK_D), tl.float32)
    for start in tl.range(0, EVENTS, BLOCK_E, num_stages=STAGES):
        e_E = start + tl.arange(0, BLOCK_E)
        live_E = e_E < num_here
        some_E = live_E
        if SCALED:
            scale_E = tl.load(scale_T + first + e_E, mask=live_E, other=0.0)
            some_E = live_E & (scale_E != 0.0)
        d_at_ED = d_sum_TD + first * D + (e_E[:, None] * D + d_D[None, :])
        d_ED = load_right(d_at_ED, some_E[:, None] & (d_D < D)[None, :], SPLIT)
        factor_VE = tl.zeros((BLOCK_V, BLOCK_E), tl.float32)
        for s in tl.static_range(S):
            slot = s * num_events.to(tl.int64) + first
            row_E = tl.load(index_ST + slot + e_E, mask=live_E, other=0) - first_row
            part_E = tl.where(some_E, 1.0, 0.0)
            if WEIGHTED:
                part_E *= tl.load(weight_ST + slot + e_E, mask=live_E, other=0.0)
            factor_VE += tl.where(v_V[:, None] == row_E[None, :], part_E[None, :], 0.0)
        if SCALED and not WHOLE:
            factor_VE *= scale_E[None, :]
        if WHOLE and SPLIT:
            factor_VE = factor_VE.to(tl.bfloat16)
        total_VD = product(factor_VE, d_ED, total_VD, SPLIT)
    at_VD = partial_NVD + tl.program_id(0).to(tl.int64) * num_rows * D + v_V[:, None] * D + d_D[None, :]
    tl.store(at_VD, total_VD * scale, mask=(v_V < num_rows)[:, None] & (d_D < D)[None, :])


@triton.jit(do_not_specialize=["num_events", "first_row", "num_rows"])
def stretch_kernel(
    d_sum_TD,
    index_ST,
    weight_ST,
    scale_T,
    partial_NVD,
    num_events,
    first_row,
    num_rows,
    S: tl.constexpr,
    D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    EVENTS: tl.constexpr,
    STAGES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Partial sum of all rows over EVENTS events."""
    if SCALED and not WEIGHTED:
        event_E = tl.program_id(0).to(tl.int64) * EVENTS + tl.arange(0, EVENTS)
        scale_E = tl.load(scale_T + event_E, mask=event_E < num_events, other=0.0)
        scale = tl.max(scale_E, 0)
        if tl.min(tl.where(scale_E != 0.0, scale_E, scale), 0) == scale:
            stretch_sum(
                d_sum_TD, index_ST, weight_ST, scale_T, partial_NVD, num_events, first_row, num_rows, scale, S, D,
                BLOCK_V, BLOCK_D, BLOCK_E, EVENTS, STAGES, WEIGHTED, SCALED, True, SPLIT,
            )  # fmt: skip
        else:
            stretch_sum(
                d_sum_TD, index_ST, weight_ST, scale_T, partial_NVD, num_events, first_row, num_rows, 1.0, S, D,
                BLOCK_V, BLOCK_D, BLOCK_E, EVENTS, STAGES, WEIGHTED, SCALED, False, SPLIT,
            )  # fmt: skip
    else:
        stretch_sum(
            d_sum_TD, index_ST, weight_ST, scale_T, partial_NVD, num_events, first_row, num_rows, 1.0, S, D,
            BLOCK_V, BLOCK_D, BLOCK_E, EVENTS, STAGES, WEIGHTED, SCALED, not WEIGHTED, SPLIT,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_partials", "num_rows"])
def add_kernel(
    partial_NVD, d_rows_VD, num_partials, num_rows, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Add up the partial sums of one row."""
    row = tl.program_id(0).to(tl.int64)
    n_N = tl.arange(0, BLOCK_N)
    d_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total_ND = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, num_partials, BLOCK_N):
        at_ND = partial_NVD + ((first + n_N).to(tl.int64) * num_rows + row)[:, None] * D + d_D[None, :]
        mask_ND = (first + n_N < num_partials)[:, None] & (d_D < D)[None, :]
        total_ND += tl.load(at_ND, mask=mask_ND, other=0.0)
    total_D = tl.sum(total_ND, 0).to(d_rows_VD.dtype.element_ty)
    tl.store(d_rows_VD + row * D + d_D, total_D, mask=d_D < D)


def stretch_config(num_events: int, num_rows: int, D: int, split: bool) -> dict[str, int]:
    """Tile and launch of stretch_kernel, chosen by shape and never by timing."""
    events = int(triton.next_power_of_2(-(-num_events // PROGRAMS)))
    return {
        "BLOCK_V": max(64, int(triton.next_power_of_2(num_rows))),
        "BLOCK_D": max(16, min(128 if split else 64, int(triton.next_power_of_2(D)))),
        "BLOCK_E": 64 if split else 32,
        "EVENTS": max(64, min(MOST_EVENTS, events)),
        "STAGES": 3,
        "num_warps": 8 if num_rows > 64 else 4,
    }


def backward(
    d_sum_TD: Tensor,
    index_ST: Tensor,
    weight_ST: Tensor | None,
    scale_T: Tensor | None,
    d_rows_VD: Tensor,
    first_row: int,
) -> None:
    """Fill ``d_rows_VD``, the gradients of the rows that the indices name, of which row 0 is ``first_row``.

    All are contiguous, factors float32; there are rows and events.
    """
    (S, T), (V, D) = index_ST.shape, d_rows_VD.shape
    split = halves(d_sum_TD.dtype)
    config = stretch_config(T, V, D, split)
    programs, parts = -(-T // config["EVENTS"]), -(-D // config["BLOCK_D"])
    partial_NVD = d_sum_TD.new_empty(programs, V, D, dtype=torch.float32)
    stretches: Any = stretch_kernel[(programs, parts)]
    stretches(
        d_sum_TD,
        index_ST,
        d_sum_TD if weight_ST is None else weight_ST,
        d_sum_TD if scale_T is None else scale_T,
        partial_NVD,
        T,
        first_row,
        V,
        S=S,
        D=D,
        WEIGHTED=weight_ST is not None,
        SCALED=scale_T is not None,
        SPLIT=split,
        **config,
    )
    add: Any = add_kernel[(V, parts)]
    add(partial_NVD, d_rows_VD, programs, V, D=D, BLOCK_N=64, BLOCK_D=config["BLOCK_D"], num_warps=4)
