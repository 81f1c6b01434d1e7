"""Sums of gathered rows: what an event is made of, without a copy of its embeddings.

A linear layer over concatenated embeddings is a sum over features, W [e_1, ..., e_F] = W_1 e_1 + ... + W_F e_F, and a
batch has far fewer distinct ids than events. So each distinct id's embedding is projected once, and an event is the sum
of the rows of its ids (and of its recency). Nothing of the size [T, all embedding widths] exists, forward or backward,
and the layer's products are over distinct ids instead of events. It is the same function of the same parameters.

Three implementations, chosen by the device of ``rows_RD``: ``naive`` is the specification, ``cpu`` uses embedding bags
(any device), ``triton`` on CUDA.

Legend of shape suffixes: T events, packed; S slots of an event; R rows; D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from laser.ops.availability import use_triton
from laser.ops.gather_sum import cpu

__all__ = ["LEAST_FEW_ROWS", "MOST_FEW_ROWS", "gather_sum"]

LEAST_FEW_ROWS, MOST_FEW_ROWS = 64, 256
"""Of one group, as many as tensor cores multiply at once, and of all, for each of which a program holds a sum."""


def gather_sum(
    rows_RD: Tensor,
    index_TS: Tensor,
    weight_TS: Tensor | None = None,
    scale_T: Tensor | None = None,
    *,
    few: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """Sum of the rows that each event names: x_t = scale_t * sum over slots s of weight_ts * rows[index_ts].

    Sums are float32 (float64 for float64), rounded once. Differentiable once, in ``rows_RD`` alone; equal inputs give
    equal bits, forward and backward.

    Args:
        rows_RD: [R, D]; float32, bfloat16, float16, or float64 (not in Triton).
        index_TS: int32 [T, S], in [0, R); not checked, which would wait for the device. The transpose of a contiguous
            [S, T] is read as it is by Triton, and so are weights; other strides are copied.
        weight_TS: [T, S]; ``None`` is 1. A slot that an event does not use has weight 0 and any valid index.
        scale_T: [T]; ``None`` is 1.
        few: (rows, slots) of groups of few rows: the last rows are theirs, group after group, and the last slots name
            rows of their own group alone, as no other slot does. Rows of a group are a power of two, at least
            ``LEAST_FEW_ROWS``, of all together at most ``MOST_FEW_ROWS``. In Triton their gradients take no sort. What
            slots name is not checked.

    Returns:
        x_TD, [T, D] in the dtype of ``rows_RD``.

    Raises:
        ValueError: when shapes or dtypes do not fit each other.
    """
    if rows_RD.dim() != 2 or index_TS.dim() != 2 or index_TS.dtype != torch.int32:
        raise ValueError(
            f"rows_RD is {list(rows_RD.shape)} and index_TS is {index_TS.dtype} {list(index_TS.shape)}; pass [R, D] "
            "and torch.int32 [T, S]"
        )
    if weight_TS is not None and weight_TS.shape != index_TS.shape:
        raise ValueError(f"weight_TS is {list(weight_TS.shape)}; pass one weight an index, {list(index_TS.shape)}")
    if scale_T is not None and list(scale_T.shape) != [index_TS.shape[0]]:
        raise ValueError(f"scale_T is {list(scale_T.shape)}; pass one factor an event, [{index_TS.shape[0]}]")
    rows, slots = [rows for rows, _ in few], [slots for _, slots in few]
    if any(each < LEAST_FEW_ROWS or each & (each - 1) for each in rows) or sum(rows) > MOST_FEW_ROWS:
        raise ValueError(
            f"groups of few rows have {rows}; pass powers of two of at least {LEAST_FEW_ROWS}, together at most "
            f"{MOST_FEW_ROWS}"
        )
    if min(slots, default=1) < 1 or sum(slots) > index_TS.shape[1] or sum(rows) > rows_RD.shape[0]:
        raise ValueError(
            f"few is {list(few)}; pass groups of at least one slot, and no more rows or slots than there are, "
            f"{rows_RD.shape[0]} and {index_TS.shape[1]}"
        )
    return _forward(rows_RD, index_TS, weight_TS, scale_T, rows, slots)


@torch.library.custom_op("laser::gather_sum", mutates_args=())
def _forward(
    rows_RD: Tensor,
    index_TS: Tensor,
    weight_TS: Tensor | None,
    scale_T: Tensor | None,
    few_rows: Sequence[int],
    few_slots: Sequence[int],
) -> Tensor:
    with torch.autocast(rows_RD.device.type, enabled=False):
        return _implementation(rows_RD).forward(rows_RD.contiguous(), index_TS, weight_TS, scale_T)


@torch.library.custom_op("laser::gather_sum_backward", mutates_args=())
def _backward(
    d_sum_TD: Tensor,
    index_TS: Tensor,
    weight_TS: Tensor | None,
    scale_T: Tensor | None,
    few_rows: Sequence[int],
    few_slots: Sequence[int],
    num_rows: int,
) -> Tensor:
    inputs = (d_sum_TD.contiguous(), index_TS, weight_TS, scale_T)
    with torch.autocast(d_sum_TD.device.type, enabled=False):
        return _implementation(d_sum_TD).backward(*inputs, num_rows, list(zip(few_rows, few_slots, strict=True)))


def _implementation(tensor: Tensor) -> Any:
    if not use_triton(tensor):
        return cpu
    from laser.ops.gather_sum import triton

    return triton


@_forward.register_fake
def _(rows_RD, index_TS, weight_TS, scale_T, few_rows, few_slots):
    return rows_RD.new_empty(index_TS.shape[0], rows_RD.shape[1])


@_backward.register_fake
def _(d_sum_TD, index_TS, weight_TS, scale_T, few_rows, few_slots, num_rows):
    return d_sum_TD.new_empty(num_rows, d_sum_TD.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows_RD, *tensors, few_rows, few_slots = inputs
    ctx.save_for_backward(*tensors)
    ctx.sizes = few_rows, few_slots, rows_RD.shape[0]


def _gradients(ctx: Any, d_sum_TD: Tensor) -> tuple[Tensor | None, ...]:
    return _backward(d_sum_TD, *ctx.saved_tensors, *ctx.sizes), None, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)
