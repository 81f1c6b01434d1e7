"""The sum of gathered rows in Triton: rows are read from the cache, every event is written once; no atomics.

Backward gathers the gradients of the events of each row, whose (event, slot) pairs are found by a sort
(``laser.ops.gather_sum.sorted_pairs``). Rows that are promised to be few take one pass over all events instead
(``laser.ops.gather_sum.few_rows``). With few pairs, as of a batch's targets, sorting would take longer than that
each row looks through all of them. Equal inputs give equal bits.

Slots come first in memory, so that the slots of neighbouring events are read together.

Legend of shape suffixes: T events, packed; S slots of an event; R rows; N = S T pairs; P pairs of a tile; D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from laser.ops.gather_sum import few_rows, sorted_pairs
from laser.ops.gather_sum.sorted_pairs import MOST_ELEMENTS, gradients

FEW_PAIRS = 1 << 12
"""Up to so many pairs are not sorted."""


@triton.jit(do_not_specialize=["num_events"])
def forward_kernel(
    rows_RD,
    index_ST,
    weight_ST,
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
    in_D = d_D < D
    live_T = t_T < num_events
    some_T = live_T
    if SCALED:
        scale_now_T = tl.load(scale_T + t_T, mask=live_T, other=0.0)
        some_T = live_T & (scale_now_T != 0.0)
    value_TD = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for s in tl.static_range(S):
        slot_T = s * num_events.to(tl.int64) + t_T
        row_T = tl.load(index_ST + slot_T, mask=some_T, other=0).to(tl.int64)
        read_T = some_T
        if WEIGHTED:  # a slot that the event does not use is not read
            weight_T = tl.load(weight_ST + slot_T, mask=some_T, other=0.0)
            read_T = some_T & (weight_T != 0.0)
        row_at_TD = rows_RD + row_T[:, None] * D + d_D[None, :]
        row_TD = tl.load(row_at_TD, mask=read_T[:, None] & in_D[None, :], other=0.0).to(tl.float32)
        if WEIGHTED:
            row_TD *= weight_T[:, None]
        value_TD += row_TD
    if SCALED:
        value_TD *= scale_now_T[:, None]
    sum_at_TD = sum_TD + t_T[:, None] * D + d_D[None, :]
    tl.store(sum_at_TD, value_TD.to(sum_TD.dtype.element_ty), mask=live_T[:, None] & in_D[None, :])


@triton.jit(do_not_specialize=["num_events", "num_pairs"])
def scan_kernel(
    d_sum_TD,
    index_N,
    weight_N,
    scale_T,
    d_rows_RD,
    num_events,
    num_pairs,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Gradient of one row, which looks for itself among all pairs."""
    row = tl.program_id(0).to(tl.int64)
    d_D = tl.arange(0, BLOCK_D)
    total_PD = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    for start in range(0, num_pairs, BLOCK_P):
        pair_P = start + tl.arange(0, BLOCK_P)
        own_P = tl.load(index_N + pair_P, mask=pair_P < num_pairs, other=-1) == row
        if tl.max(own_P.to(tl.int32), 0) > 0:
            total_PD += gradients(d_sum_TD, pair_P, own_P, weight_N, scale_T, num_events, D, BLOCK_D, WEIGHTED, SCALED)
    total_D = tl.sum(total_PD, 0)
    tl.store(d_rows_RD + row * D + d_D, total_D.to(d_rows_RD.dtype.element_ty), mask=d_D < D)


def forward(rows_RD: Tensor, index_TS: Tensor, weight_TS: Tensor | None, scale_T: Tensor | None) -> Tensor:
    """[T, D] in the dtype of ``rows_RD``, which are contiguous."""
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
            _slots_first(index_TS),
            rows_RD if weight_TS is None else _slots_first(weight_TS.float()),
            rows_RD if scale_T is None else scale_T.float().contiguous(),
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
    num_rows: int,
    few: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """Gradient of the rows, [R, D] in the dtype of ``d_sum_TD``, which is contiguous; ``few`` as in ``gather_sum``."""
    d_rows_RD = d_sum_TD.new_empty(num_rows, d_sum_TD.shape[1])
    index_ST = _slots_first(index_TS)
    weight_ST = None if weight_TS is None else _slots_first(weight_TS.float())
    scale_T = None if scale_T is None else scale_T.float().contiguous()
    scan = index_TS.numel() <= FEW_PAIRS
    few = () if scan else few
    R, S = num_rows - sum(rows for rows, _ in few), index_TS.shape[1] - sum(slots for _, slots in few)
    _fill(d_sum_TD, index_ST[:S], None if weight_ST is None else weight_ST[:S], scale_T, d_rows_RD[:R], scan)
    if few:
        weight_ST = None if weight_ST is None else weight_ST[S:]
        few_rows.backward(d_sum_TD, index_ST[S:], weight_ST, scale_T, d_rows_RD[R:], few, R)
    return d_rows_RD


def _fill(
    d_sum_TD: Tensor,
    index_ST: Tensor,
    weight_ST: Tensor | None,
    scale_T: Tensor | None,
    d_rows_RD: Tensor,
    scan: bool,
) -> None:
    """Fill ``d_rows_RD`` by a scan or a sort; factors are float32."""
    num_rows, D = d_rows_RD.shape
    if not index_ST.numel() or not num_rows:
        d_rows_RD.zero_()
        return
    index_N, num_events = index_ST.flatten(), index_ST.shape[1]
    # Where there is no factor any pointer does, as it is not read.
    weight_N = d_sum_TD if weight_ST is None else weight_ST
    scale = d_sum_TD if scale_T is None else scale_T
    options = {
        "D": D,
        "BLOCK_D": int(triton.next_power_of_2(D)),
        "WEIGHTED": weight_ST is not None,
        "SCALED": scale_T is not None,
        "num_warps": 4,
    }
    if scan:
        launch: Any = scan_kernel[(num_rows,)]
        block_p = max(1, min(128, 2 * MOST_ELEMENTS // options["BLOCK_D"]))
        launch(d_sum_TD, index_N, weight_N, scale, d_rows_RD, num_events, len(index_N), **options, BLOCK_P=block_p)
    else:
        sorted_pairs.backward(d_sum_TD, index_N, weight_N, scale, d_rows_RD, num_events, options)


def _slots_first(value_TS: Tensor) -> Tensor:
    """[S, T], contiguous."""
    return value_TS.t().contiguous()
