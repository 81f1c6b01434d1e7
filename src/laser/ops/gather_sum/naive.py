"""The specification of the sum of gathered rows, in plain PyTorch: any device, any dtype, differentiable by autograd.

Legend of shape suffixes: T events, packed; S slots of an event; R rows; D width.
"""

from __future__ import annotations

from torch import Tensor


def gather_sum(rows_RD: Tensor, index_TS: Tensor, weight_TS: Tensor | None, scale_T: Tensor | None) -> Tensor:
    """See ``laser.ops.gather_sum.gather_sum``."""
    weight_TS = index_TS.new_ones(index_TS.shape) if weight_TS is None else weight_TS
    sum_TD = (rows_RD[index_TS.long()] * weight_TS.to(rows_RD.dtype)[..., None]).sum(1)
    return sum_TD if scale_T is None else sum_TD * scale_T.to(rows_RD.dtype)[:, None]
