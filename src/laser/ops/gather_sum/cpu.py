"""The sum of gathered rows by PyTorch's embedding bags: forward over the slots of an event, backward over the events of
a row. The second needs (event, slot) pairs sorted by row; the sort is stable, so that equal inputs give equal bits.

Legend of shape suffixes: T events, packed; S slots of an event; R rows; N = T S pairs; D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad


def forward(rows_RD: Tensor, index_TS: Tensor, weight_TS: Tensor | None, scale_T: Tensor | None) -> Tensor:
    """[T, D] in the dtype of ``rows_RD``."""
    wide = torch.promote_types(rows_RD.dtype, torch.float32)
    if not index_TS.numel():
        return rows_RD.new_zeros(index_TS.shape[0], rows_RD.shape[1])
    weight = _pair_weights(weight_TS, scale_T, index_TS.shape, wide)
    return embedding_bag(index_TS.contiguous(), rows_RD.to(wide), mode="sum", per_sample_weights=weight).to(
        rows_RD.dtype
    )


def backward(
    d_sum_TD: Tensor,
    index_TS: Tensor,
    weight_TS: Tensor | None,
    scale_T: Tensor | None,
    num_rows: int,
    few: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """Gradient of the rows, [R, D] in the dtype of ``d_sum_TD``; with few rows, too, as with all."""
    wide = torch.promote_types(d_sum_TD.dtype, torch.float32)
    if not index_TS.numel():
        return d_sum_TD.new_zeros(num_rows, d_sum_TD.shape[1])
    row_N = index_TS.flatten()
    order_N = torch.argsort(row_N, stable=True)
    off_R1 = pad(torch.bincount(row_N, minlength=num_rows).cumsum(0), (1, 0))
    weight = _pair_weights(weight_TS, scale_T, index_TS.shape, wide)
    return embedding_bag(
        order_N // index_TS.shape[1],
        d_sum_TD.to(wide),
        off_R1,
        mode="sum",
        per_sample_weights=None if weight is None else weight.flatten()[order_N],
        include_last_offset=True,
    ).to(d_sum_TD.dtype)


def _pair_weights(
    weight_TS: Tensor | None, scale_T: Tensor | None, shape: torch.Size, dtype: torch.dtype
) -> Tensor | None:
    """Weight times scale of every (event, slot), or ``None`` where all are 1."""
    if scale_T is None:
        return None if weight_TS is None else weight_TS.to(dtype)
    scale_T1 = scale_T.to(dtype)[:, None]
    return scale_T1.expand(shape).contiguous() if weight_TS is None else weight_TS.to(dtype) * scale_T1
