"""The sum of gathered rows in Triton: rows are read from the cache, every event is written once; no atomics.

Backward sorts the (event, slot) pairs by row (stable) and cuts them into chunks of BLOCK_P pairs. A program gathers the
gradients of its chunk's events and sums runs of equal rows by one small matrix product with the runs' indicator. A run
that lies inside its chunk is a row's whole gradient. The first and the last run of a chunk may go on beside it: their
sums are left in two partial rows a chunk, which a second kernel adds up in the order of chunks. So a row that half of
all events use (an outcome, an action) costs as little as many rows of one event, and equal inputs give equal bits.

    sorted rows  | 3 3 3 5 | 5 5 5 5 | 5 7 8 8 |      chunks of 4 pairs
    partial        3     5   5         5     8        first and last run of each chunk (one run: first only)
    written at once                      7

Legend of shape suffixes: T events, packed; S slots of an event; R rows; N = T S pairs; P pairs of a chunk; C chunks;
L runs of a chunk; D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from laser.ops.segmented_attention.triton import INTERPRETED, product

MOST_ELEMENTS = 1 << 12
"""Of a block [events, D] that one forward program holds."""
FEW_CHUNKS = 64
LONG_ELEMENTS = 1 << 14
"""Of a block [chunks, D] of a row with more than FEW_CHUNKS chunks, such as an outcome that half of all events have."""


@triton.jit
def forward_kernel(
    rows_RD,
    index_TS,
    weight_TS,
    scale_T,
    sum_TD,
    num_events,
    S: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Sum the slots of BLOCK_T events."""
    t_T = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    d_D = tl.arange(0, BLOCK_D)
    live_T = t_T < num_events
    live_TD = live_T[:, None] & (d_D < D)[None, :]
    value_TD = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for s in tl.static_range(S):
        row_T = tl.load(index_TS + t_T * S + s, mask=live_T, other=0).to(tl.int64)
        row_TD = tl.load(rows_RD + row_T[:, None] * D + d_D[None, :], mask=live_TD, other=0.0).to(tl.float32)
        if WEIGHTED:
            row_TD *= tl.load(weight_TS + t_T * S + s, mask=live_T, other=0.0)[:, None]
        value_TD += row_TD
    if SCALED:
        value_TD *= tl.load(scale_T + t_T, mask=live_T, other=0.0)[:, None]
    tl.store(sum_TD + t_T[:, None] * D + d_D[None, :], value_TD.to(sum_TD.dtype.element_ty), mask=live_TD)


@triton.jit
def run_kernel(
    d_sum_TD,
    row_N,
    pair_N,
    weight_TS,
    scale_T,
    d_rows_RD,
    partial_CD,
    num_pairs,
    survivors,
    S: tl.constexpr,
    D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    SURVIVORS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Sum the runs of equal rows in one chunk of sorted pairs."""
    chunk = tl.program_id(0).to(tl.int64)
    p_P = tl.arange(0, BLOCK_P)
    at_P = chunk * BLOCK_P + p_P
    live_P = at_P < num_pairs
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    row_P = tl.load(row_N + at_P, mask=live_P, other=-1)
    before_P = tl.load(row_N + at_P - 1, mask=live_P & (p_P > 0), other=-2)
    # Pairs behind the end have row -1 and form a run of their own, which is not stored.
    starts_P = (row_P != before_P) & (p_P > 0) & live_P
    run_P = tl.cumsum(starts_P.to(tl.int32), 0)
    pair_P = tl.load(pair_N + at_P, mask=live_P, other=0)
    event_P = pair_P // S
    factor_P = live_P.to(tl.float32)
    if WEIGHTED:
        factor_P *= tl.load(weight_TS + pair_P, mask=live_P, other=0.0)
    if SCALED:
        scale_P = tl.load(scale_T + event_P, mask=live_P, other=0.0)
        factor_P *= tl.where(scale_P != 0.0, 1.0, 0.0) if SURVIVORS else scale_P
    # Dropped events and slots that an event does not use are not read, and a chunk of them alone costs little.
    some_P = factor_P != 0.0
    d_at_PD = d_sum_TD + event_P[:, None] * D + d_D[None, :]
    d_PD = tl.load(d_at_PD, mask=some_P[:, None] & in_D[None, :], other=0.0)
    if not SPLIT:
        d_PD = d_PD.to(tl.float32)
    l_L = tl.arange(0, BLOCK_P)
    own_LP = tl.where(run_P[None, :] == l_L[:, None], factor_P[None, :], 0.0)
    if SPLIT and not WEIGHTED and (SURVIVORS or not SCALED):
        own_LP = own_LP.to(tl.bfloat16)  # zeros and ones, so that nothing is left to a second product
    sum_LD = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    if tl.max(some_P.to(tl.int32), 0) > 0:
        sum_LD = product(own_LP, d_PD, sum_LD, SPLIT)
    if SURVIVORS:
        sum_LD *= survivors
    last = tl.max(tl.where(live_P, run_P, 0), 0)
    row_L = tl.max(tl.where((run_P[None, :] == l_L[:, None]) & live_P[None, :], row_P[None, :], -1), 1).to(tl.int64)
    inner_L = (l_L > 0) & (l_L < last)
    row_at_LD = d_rows_RD + row_L[:, None] * D + d_D[None, :]
    tl.store(row_at_LD, sum_LD.to(d_rows_RD.dtype.element_ty), mask=inner_L[:, None] & in_D[None, :])
    # The first run goes to partial row 2 chunk, the last, if it is another, to 2 chunk + 1.
    edge_L = (l_L == 0) | (l_L == last)
    partial_L = 2 * chunk + (l_L > 0).to(tl.int64)
    partial_at_LD = partial_CD + partial_L[:, None] * D + d_D[None, :]
    tl.store(partial_at_LD, sum_LD, mask=edge_L[:, None] & in_D[None, :])


@triton.jit
def row_kernel(
    partial_CD,
    off_R1,
    d_rows_RD,
    D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FEWEST: tl.constexpr,
    MOST: tl.constexpr,
):
    """Gradient of one row from the partial sums of its chunks, unless one chunk has written it.

    Only rows of FEWEST to MOST chunks, so that long ones can have larger blocks.
    """
    row = tl.program_id(0).to(tl.int64)
    begin = tl.load(off_R1 + row)
    end = tl.load(off_R1 + row + 1)
    first = begin // BLOCK_P
    last = (end - 1) // BLOCK_P
    c_C = tl.arange(0, BLOCK_C)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    total_CD = tl.zeros((BLOCK_C, BLOCK_D), tl.float32)
    # A run that starts behind its chunk's first pair and ends before its last was written at once. The chunk's last
    # pair is the last of all pairs where the chunk is cut short.
    num_pairs = tl.load(off_R1 + tl.num_programs(0))
    done = (begin > first * BLOCK_P) & (begin < end) & (end < tl.minimum((first + 1) * BLOCK_P, num_pairs))
    chunks = tl.where(begin < end, last + 1 - first, 0)
    done = done | (chunks < FEWEST) | (chunks > MOST)
    if begin < end and not done:
        for chunk in range(first, last + 1, BLOCK_C):
            now_C = chunk + c_C
            # Only in its first chunk may the run be the chunk's last; later ones begin with it.
            slot_C = 2 * now_C + ((now_C == first) & (begin > first * BLOCK_P)).to(tl.int64)
            mask_CD = (now_C <= last)[:, None] & in_D[None, :]
            total_CD += tl.load(partial_CD + slot_C[:, None] * D + d_D[None, :], mask=mask_CD, other=0.0)
    if not done:
        total_D = tl.sum(total_CD, 0)
        tl.store(d_rows_RD + row * D + d_D, total_D.to(d_rows_RD.dtype.element_ty), mask=in_D)


def forward(rows_RD: Tensor, index_TS: Tensor, weight_TS: Tensor | None, scale_T: Tensor | None) -> Tensor:
    """[T, D] in the dtype of ``rows_RD``; rows and index contiguous."""
    (T, S), D = index_TS.shape, rows_RD.shape[1]
    sum_TD = rows_RD.new_empty(T, D)
    if not S:
        return sum_TD.zero_()
    block_d = int(triton.next_power_of_2(D))
    block_t = max(1, MOST_ELEMENTS // block_d)
    if T:
        launch: Any = forward_kernel[(-(-T // block_t),)]
        launch(
            rows_RD,
            index_TS,
            _float32(weight_TS, rows_RD),
            _float32(scale_T, rows_RD),
            sum_TD,
            T,
            S=S,
            D=D,
            BLOCK_T=block_t,
            BLOCK_D=block_d,
            WEIGHTED=weight_TS is not None,
            SCALED=scale_T is not None,
            num_warps=4,
        )
    return sum_TD


def backward(
    d_sum_TD: Tensor,
    index_TS: Tensor,
    weight_TS: Tensor | None,
    scale_T: Tensor | None,
    survivors: float | None,
    num_rows: int,
) -> Tensor:
    """Gradient of the rows, [R, D] in the dtype of ``d_sum_TD``; inputs contiguous."""
    (T, S), D = index_TS.shape, d_sum_TD.shape[1]
    d_rows_RD = d_sum_TD.new_empty(num_rows, D)
    if not T * S or not num_rows:
        return d_rows_RD.zero_()
    row_N, pair_N = torch.sort(index_TS.flatten(), stable=True)
    bounds_R1 = torch.arange(num_rows + 1, dtype=torch.int32, device=index_TS.device)
    off_R1 = torch.searchsorted(row_N, bounds_R1)
    block_d = max(16, int(triton.next_power_of_2(D)))
    block_p = 64 if block_d <= 128 else 32
    num_chunks = -(-T * S // block_p)
    partial_CD = d_sum_TD.new_empty(2 * num_chunks, D, dtype=torch.float32)
    launch: Any = run_kernel[(num_chunks,)]
    launch(
        d_sum_TD,
        row_N,
        pair_N,
        _float32(weight_TS, d_sum_TD),
        _float32(scale_T, d_sum_TD),
        d_rows_RD,
        partial_CD,
        T * S,
        1.0 if survivors is None else survivors,
        S=S,
        D=D,
        BLOCK_P=block_p,
        BLOCK_D=block_d,
        WEIGHTED=weight_TS is not None,
        SCALED=scale_T is not None,
        SURVIVORS=scale_T is not None and survivors is not None,
        SPLIT=d_sum_TD.dtype == torch.bfloat16 and not INTERPRETED,
        num_warps=4,
    )
    rows: Any = row_kernel[(num_rows,)]
    shape = {"D": D, "BLOCK_P": block_p, "BLOCK_D": block_d}
    rows(partial_CD, off_R1, d_rows_RD, **shape, BLOCK_C=16, FEWEST=0, MOST=FEW_CHUNKS, num_warps=4)
    if num_chunks > FEW_CHUNKS:
        block_c = max(1, LONG_ELEMENTS // block_d)
        rows(partial_CD, off_R1, d_rows_RD, **shape, BLOCK_C=block_c, FEWEST=FEW_CHUNKS + 1, MOST=2**30, num_warps=8)
    return d_rows_RD


def _float32(value: Tensor | None, like: Tensor) -> Tensor:
    """A kernel's argument; where there is none, any pointer does, as it is not read."""
    return like if value is None else value.float().contiguous()
