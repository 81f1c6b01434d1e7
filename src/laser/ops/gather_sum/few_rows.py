# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""Gradients of rows of tables that have few: one pass over the gradients of all events, without a sort.

A row's gradient is a sum over events, so that a table's are a product, d_rows [V, D] = F^T [V, T] d_sum [T, D], where F
is how often (times which weight and scale) an event names a row. A program takes a stretch of EVENTS events in steps of
BLOCK_E: it makes its part of every table's F by comparing indices with row numbers, multiplies on tensor cores, and
leaves a float32 partial sum of every row. A second kernel adds these up, in their order; no atomics, so that equal
inputs give equal bits.

Dropped events (scale 0) are not read. Under a dropout all others of a stretch have one scale: F is then of whole
numbers, and the sum is scaled. Where scales differ, or slots have weights, F has factors (``laser.ops.products``).

Legend of shape suffixes: T events, packed; E events of a step; S slots of all tables; V rows of all tables (in
stretch_sum: of one); N partial sums, one a stretch (in add_kernel: of a tile); D width (in kernels: of one program).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from laser.ops.products import halves, load_side, product

STRETCHES = 512
"""At the most, unless they were longer than MOST_EVENTS. A constant, as other stretches are another order of summation,
and so other bits."""
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
    scale,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
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
    d_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    totals = ()
    for group in tl.static_range(len(ROWS)):
        totals += (tl.zeros((tl.constexpr(ROWS[group]), BLOCK_D), tl.float32),)
    for start in tl.range(0, EVENTS, BLOCK_E, num_stages=STAGES):
        e_E = start + tl.arange(0, BLOCK_E)
        live_E = e_E < num_here
        some_E = live_E
        if SCALED:
            scale_E = tl.load(scale_T + first + e_E, mask=live_E, other=0.0)
            some_E = live_E & (scale_E != 0.0)
        d_at_ED = d_sum_TD + first * D + (e_E[:, None] * D + d_D[None, :])
        d_ED = load_side(d_at_ED, some_E[:, None] & (d_D < D)[None, :], SPLIT)
        row, slot = first_row, first
        sums = ()
        for group in tl.static_range(len(ROWS)):
            v_V = tl.arange(0, tl.constexpr(ROWS[group]))
            factor_VE = tl.zeros((tl.constexpr(ROWS[group]), BLOCK_E), tl.float32)
            for _ in tl.static_range(tl.constexpr(SLOTS[group])):
                row_E = (tl.load(index_ST + slot + e_E, mask=live_E, other=0) - row).to(tl.int32)
                row_E = tl.where(some_E, row_E, -1)
                if WHOLE:
                    factor_VE += tl.where(v_V[:, None] == row_E[None, :], 1.0, 0.0)
                else:
                    part_E = scale_E if SCALED else 1.0
                    if WEIGHTED:
                        part_E *= tl.load(weight_ST + slot + e_E, mask=live_E, other=0.0)
                    factor_VE += tl.where(v_V[:, None] == row_E[None, :], part_E[None, :], 0.0)
                slot += num_events
            if WHOLE and SPLIT:
                factor_VE = factor_VE.to(tl.bfloat16)
            sums += (product(factor_VE, d_ED, totals[group], SPLIT),)
            row += ROWS[group]
        totals = sums
    partial_at = partial_NVD + tl.program_id(0).to(tl.int64) * V * D
    for group in tl.static_range(len(ROWS)):
        v_V = tl.arange(0, tl.constexpr(ROWS[group]))
        tl.store(partial_at + v_V[:, None] * D + d_D[None, :], totals[group] * scale, mask=(d_D < D)[None, :])
        partial_at += ROWS[group] * D


@triton.jit(do_not_specialize=["num_events", "first_row"])
def stretch_kernel(
    d_sum_TD,
    index_ST,
    weight_ST,
    scale_T,
    partial_NVD,
    num_events,
    first_row,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    EVENTS: tl.constexpr,
    STAGES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Partial sum of all rows over EVENTS events."""
    scale = 1.0
    if SCALED and not WEIGHTED:
        event_E = tl.program_id(0).to(tl.int64) * EVENTS + tl.arange(0, EVENTS)
        scale_E = tl.load(scale_T + event_E, mask=event_E < num_events, other=0.0)
        scale = tl.max(scale_E, 0)
        if tl.min(tl.where(scale_E != 0.0, scale_E, scale), 0) == scale:
            stretch_sum(
                d_sum_TD, index_ST, weight_ST, scale_T, partial_NVD, num_events, first_row, scale, ROWS, SLOTS, V, D,
                BLOCK_D, BLOCK_E, EVENTS, STAGES, WEIGHTED, SCALED, True, SPLIT,
            )  # fmt: skip
        else:
            stretch_sum(
                d_sum_TD, index_ST, weight_ST, scale_T, partial_NVD, num_events, first_row, 1.0, ROWS, SLOTS, V, D,
                BLOCK_D, BLOCK_E, EVENTS, STAGES, WEIGHTED, SCALED, False, SPLIT,
            )  # fmt: skip
    else:
        stretch_sum(
            d_sum_TD, index_ST, weight_ST, scale_T, partial_NVD, num_events, first_row, 1.0, ROWS, SLOTS, V, D,
            BLOCK_D, BLOCK_E, EVENTS, STAGES, WEIGHTED, SCALED, not WEIGHTED, SPLIT,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_partials"])
def add_kernel(
    partial_NVD, d_rows_VD, num_partials, V: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Add up the partial sums of one row."""
    row = tl.program_id(0)
    n_N = tl.arange(0, BLOCK_N)
    d_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total_ND = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, num_partials, BLOCK_N):
        at_ND = partial_NVD + ((first + n_N).to(tl.int64) * V + row)[:, None] * D + d_D[None, :]
        mask_ND = (first + n_N < num_partials)[:, None] & (d_D < D)[None, :]
        total_ND += tl.load(at_ND, mask=mask_ND, other=0.0)
    total_D = tl.sum(total_ND, 0).to(d_rows_VD.dtype.element_ty)
    tl.store(d_rows_VD + row * D + d_D, total_D, mask=d_D < D)


def stretch_config(num_events: int, num_rows: int, D: int, split: bool) -> dict[str, int]:
    """Tile and launch of stretch_kernel, chosen by shape and never by timing."""
    events = int(triton.next_power_of_2(-(-num_events // STRETCHES)))
    return {
        "BLOCK_D": max(16, min(128 if split else 64, int(triton.next_power_of_2(D)))),
        "BLOCK_E": 128 if split else 32,
        "EVENTS": max(64, min(MOST_EVENTS, events)),
        "STAGES": 2,
        "num_warps": 8 if num_rows > 64 else 4,
    }


def backward(
    d_sum_TD: Tensor,
    index_ST: Tensor,
    weight_ST: Tensor | None,
    scale_T: Tensor | None,
    d_rows_VD: Tensor,
    few: Sequence[tuple[int, int]],
    first_row: int,
) -> None:
    """Fill ``d_rows_VD``, the gradients of the rows of tables, of which row 0 is ``first_row`` of the indices.

    All are contiguous, factors float32; there are events.
    """
    T, (V, D) = index_ST.shape[1], d_rows_VD.shape
    split = halves(d_sum_TD.dtype)
    config = stretch_config(T, V, D, split)
    stretches, parts = -(-T // config["EVENTS"]), -(-D // config["BLOCK_D"])
    partial_NVD = d_sum_TD.new_empty(stretches, V, D, dtype=torch.float32)
    sums: Any = stretch_kernel[(stretches, parts)]
    sums(
        d_sum_TD,
        index_ST,
        d_sum_TD if weight_ST is None else weight_ST,
        d_sum_TD if scale_T is None else scale_T,
        partial_NVD,
        T,
        first_row,
        ROWS=tuple(rows for rows, _ in few),
        SLOTS=tuple(slots for _, slots in few),
        V=V,
        D=D,
        WEIGHTED=weight_ST is not None,
        SCALED=scale_T is not None,
        SPLIT=split,
        **config,
    )
    add: Any = add_kernel[(V, parts)]
    add(partial_NVD, d_rows_VD, stretches, V=V, D=D, BLOCK_N=64, BLOCK_D=config["BLOCK_D"], num_warps=4)
