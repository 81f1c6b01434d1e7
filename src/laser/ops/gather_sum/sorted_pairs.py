"""Gradients of rows whose pairs of event and slot are many: sorted by row, in chunks.

The pairs are sorted (stable), so that a row's are consecutive, and cut into chunks of CHUNK pairs that do not cross
rows: a program gathers the gradients of one chunk's events and adds them up, and where a row has several chunks another
kernel adds their sums up, in their order. So a row that half of all events use (an outcome, an action) is the work of
many programs. Rows with SHORT pairs or fewer would leave most of a program idle: one program takes BLOCK_R of them.

    sorted rows  | 3 3 3 | 5 5 5 5 | 5 5 5 | 7 | 8 8 |      chunks of 4 pairs, SHORT = 2
    chunk_kernel   row 3   partial   partial                 row_kernel: both partial sums -> row 5
    short_kernel                             7   8           and rows without pairs: zeros

Legend of shape suffixes: T events, packed; R rows (in short_kernel: of a program); N pairs; P pairs of a tile; C chunks
(in row_kernel: of a tile); D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_ELEMENTS = 1 << 12
"""Of a block [events, D] or [pairs, D] that one program holds."""
CHUNK = 512
SHORT = 16


@triton.jit
def gradients(
    d_sum_TD,
    pair_P,
    live_P,
    weight_N,
    scale_T,
    num_events,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
):
    """What each pair adds to its row, float32 [P, D]; dropped events and slots that are not used are not read."""
    d_D = tl.arange(0, BLOCK_D)
    event_P = pair_P % num_events
    factor_P = live_P.to(tl.float32)
    if WEIGHTED:
        factor_P *= tl.load(weight_N + pair_P, mask=live_P, other=0.0)
    if SCALED:
        factor_P *= tl.load(scale_T + event_P, mask=live_P, other=0.0)
    some_P = factor_P != 0.0
    d_at_PD = d_sum_TD + event_P.to(tl.int64)[:, None] * D + d_D[None, :]
    d_PD = tl.load(d_at_PD, mask=some_P[:, None] & (d_D < D)[None, :], other=0.0).to(tl.float32)
    if WEIGHTED or SCALED:
        d_PD *= factor_P[:, None]
    return d_PD


@triton.jit(do_not_specialize=["num_events", "num_rows"])
def chunk_kernel(
    d_sum_TD,
    pair_N,
    off_R1,
    chunk_off_R1,
    row_of_C,
    weight_N,
    scale_T,
    d_rows_RD,
    partial_CD,
    num_events,
    num_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradient of a row from one chunk, or its part of it."""
    chunk = tl.program_id(0).to(tl.int64)
    row = tl.load(row_of_C + chunk)
    p_P = tl.arange(0, BLOCK_P)
    d_D = tl.arange(0, BLOCK_D)
    if row < num_rows:  # the others are launched for nothing: how many there are is known on the device alone
        first_chunk = tl.load(chunk_off_R1 + row)
        chunks = tl.load(chunk_off_R1 + row + 1) - first_chunk
        begin = tl.load(off_R1 + row) + (chunk - first_chunk) * CHUNK
        end = tl.minimum(begin + CHUNK, tl.load(off_R1 + row + 1))
        total_PD = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
        for start in range(0, end - begin, BLOCK_P):
            at_P = begin + start + p_P
            live_P = at_P < end
            pair_P = tl.load(pair_N + at_P, mask=live_P, other=0)
            if not WIDE:
                pair_P = pair_P.to(tl.int32)
            total_PD += gradients(d_sum_TD, pair_P, live_P, weight_N, scale_T, num_events, D, BLOCK_D, WEIGHTED, SCALED)
        total_D = tl.sum(total_PD, 0)
        if chunks == 1:
            tl.store(d_rows_RD + row * D + d_D, total_D.to(d_rows_RD.dtype.element_ty), mask=d_D < D)
        else:
            tl.store(partial_CD + chunk * D + d_D, total_D, mask=d_D < D)


@triton.jit
def row_kernel(
    partial_CD,
    chunk_off_R1,
    d_rows_RD,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradient of one row that has several chunks."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(chunk_off_R1 + row)
    end = tl.load(chunk_off_R1 + row + 1)
    d_D = tl.arange(0, BLOCK_D)
    if end - first > 1:
        total_CD = tl.zeros((BLOCK_C, BLOCK_D), tl.float32)
        for start in range(first, end, BLOCK_C):
            chunk_C = start + tl.arange(0, BLOCK_C)
            mask_CD = (chunk_C < end)[:, None] & (d_D < D)[None, :]
            total_CD += tl.load(partial_CD + chunk_C[:, None] * D + d_D[None, :], mask=mask_CD, other=0.0)
        total_D = tl.sum(total_CD, 0)
        tl.store(d_rows_RD + row * D + d_D, total_D.to(d_rows_RD.dtype.element_ty), mask=d_D < D)


@triton.jit(do_not_specialize=["num_events", "num_rows"])
def short_kernel(
    d_sum_TD,
    pair_N,
    off_R1,
    weight_N,
    scale_T,
    d_rows_RD,
    num_events,
    num_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SHORT: tl.constexpr,
):
    """Gradients of those of BLOCK_R rows that have SHORT pairs or fewer."""
    r_R = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d_D = tl.arange(0, BLOCK_D)
    live_R = r_R < num_rows
    begin_R = tl.load(off_R1 + r_R, mask=live_R, other=0)
    count_R = tl.load(off_R1 + r_R + 1, mask=live_R, other=0) - begin_R
    live_R = live_R & (count_R <= SHORT)
    most = tl.max(tl.where(live_R, count_R, 0), 0).to(tl.int32)
    total_RD = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for n in range(0, most):
        has_R = live_R & (n < count_R)
        pair_R = tl.load(pair_N + begin_R + n, mask=has_R, other=0)
        if not WIDE:
            pair_R = pair_R.to(tl.int32)
        total_RD += gradients(d_sum_TD, pair_R, has_R, weight_N, scale_T, num_events, D, BLOCK_D, WEIGHTED, SCALED)
    d_rows_at_RD = d_rows_RD + r_R[:, None] * D + d_D[None, :]
    tl.store(d_rows_at_RD, total_RD.to(d_rows_RD.dtype.element_ty), mask=live_R[:, None] & (d_D < D)[None, :])


def pairs_by_row(index_N: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Pairs [N] sorted by their row, and where each row's begin [R + 1], both int64."""
    # A radix sort passes over the keys once for each of their bytes.
    key = torch.int16 if num_rows < 1 << 15 else torch.int32
    row_N, pair_N = torch.sort(index_N.to(key), stable=True)
    bounds_R1 = torch.arange(num_rows + 1, dtype=key, device=index_N.device)
    return pair_N, torch.searchsorted(row_N, bounds_R1)


def backward(
    d_sum_TD: Tensor,
    index_N: Tensor,
    weight_N: Tensor,
    scale_T: Tensor,
    d_rows_RD: Tensor,
    num_events: int,
    options: dict[str, Any],
) -> None:
    """Fill ``d_rows_RD``; pairs are counted slot by slot, pair n being of event n mod T."""
    num_pairs, (num_rows, D) = len(index_N), d_rows_RD.shape
    pair_N, off_R1 = pairs_by_row(index_N, num_rows)
    count_R = off_R1.diff()
    chunks_R = torch.where(count_R > SHORT, (count_R + (CHUNK - 1)) // CHUNK, 0)
    chunk_off_R1 = torch.nn.functional.pad(chunks_R.cumsum(0), (1, 0))
    most_chunks = num_pairs // CHUNK + min(num_rows, num_pairs // (SHORT + 1))
    row_of_C = torch.searchsorted(chunk_off_R1[1:], torch.arange(most_chunks, device=index_N.device), right=True)
    partial_CD = d_sum_TD.new_empty(most_chunks, D, dtype=torch.float32)
    block = max(1, MOST_ELEMENTS // options["BLOCK_D"])
    options |= {"WIDE": num_pairs >= 1 << 31}
    shorts: Any = short_kernel[(-(-num_rows // block),)]
    shorts(
        d_sum_TD, pair_N, off_R1, weight_N, scale_T, d_rows_RD, num_events, num_rows, **options,
        BLOCK_R=block, SHORT=SHORT,
    )  # fmt: skip
    if not most_chunks:
        return
    chunks: Any = chunk_kernel[(most_chunks,)]
    chunks(
        d_sum_TD, pair_N, off_R1, chunk_off_R1, row_of_C, weight_N, scale_T, d_rows_RD, partial_CD, num_events,
        num_rows, **options, BLOCK_P=min(block, CHUNK), CHUNK=CHUNK,
    )  # fmt: skip
    rows: Any = row_kernel[(num_rows,)]
    block_d = options["BLOCK_D"]
    rows(partial_CD, chunk_off_R1, d_rows_RD, D=D, BLOCK_D=block_d, BLOCK_C=max(1, 8192 // block_d), num_warps=4)
