"""Layer norm of a sum, in plain PyTorch: the specification.

Legend of shape suffixes: N rows, of any number of leading dimensions; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def residual_norm(a_ND: Tensor, b_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """Layer norm of a + b in the dtype that a + b has; see the package for shapes and dtypes.

    Half precision is widened before the sum.
    """
    dtype = torch.promote_types(a_ND.dtype, b_ND.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    sum_ND = a_ND.to(wide) + b_ND.to(wide)
    difference_ND = sum_ND - sum_ND.mean(-1, keepdim=True)
    variance_N1 = difference_ND.square().mean(-1, keepdim=True)
    normal_ND = difference_ND / (variance_N1 + eps).sqrt()
    return (normal_ND * weight_D.to(wide) + bias_D.to(wide)).to(dtype)
