"""Feed-forward networks in plain PyTorch: the specification.

Legend of shape suffixes: N rows; H groups; I inputs; F hidden; O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_feed_forward(
    x_NHI: Tensor, weight1_HIF: Tensor, bias1_HF: Tensor, weight2_HFO: Tensor, bias2_HO: Tensor
) -> Tensor:
    """GELU(x_h W1_h + b1_h) W2_h + b2_h, [N, H, O]; see the package for shapes and dtypes."""
    hidden_NHF = torch.einsum("nhi,hif->nhf", x_NHI, weight1_HIF) + bias1_HF
    active_NHF = hidden_NHF * (1 + torch.erf(hidden_NHF / 2**0.5)) / 2
    return torch.einsum("nhf,hfo->nho", active_NHF, weight2_HFO) + bias2_HO
