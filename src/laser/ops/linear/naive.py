"""Linear layers in plain PyTorch: the specification.

Legend of shape suffixes: N rows; H groups; I inputs; O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """x W^T + b, with half precision widened before the product and rounded after the sum."""
    wide = torch.promote_types(x_NI.dtype, torch.float32)
    y_NO = x_NI.to(wide) @ weight_OI.to(wide).T
    return (y_NO if bias_O is None else y_NO + bias_O.to(wide)).to(x_NI.dtype)


def grouped_linear(x_NHI: Tensor, weight_HIO: Tensor, bias_HO: Tensor | None) -> Tensor:
    """x_h W_h + b_h for each group h, likewise."""
    wide = torch.promote_types(x_NHI.dtype, torch.float32)
    y_NHO = (x_NHI.to(wide).transpose(0, 1) @ weight_HIO.to(wide)).transpose(0, 1)
    return (y_NHO if bias_HO is None else y_NHO + bias_HO.to(wide)).to(x_NHI.dtype)


def side_by_side(inputs: Sequence[Sequence[Tensor]], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Results of layers, one after another along the last dimension."""
    layers = zip(inputs, weights, biases, strict=True)
    return torch.cat([linear(torch.cat([*x], -1), *layer) for x, *layer in layers], -1)
