"""Feed-forward networks, W2 GELU(W1 x + b1) + b2: one for all rows, or one per group of them.

On CUDA in half precision GELU and the first bias are part of the first product, and GELU's derivative and the sum for
the first bias' gradient are part of the product that leads back to the hidden layer: that is the largest tensor far and
wide, and each of these would read or write it once more. All other products are PyTorch's, as in ``laser.ops.linear``.

``naive`` is the specification. Off CUDA, in float32 and float64, for widths below 16 and wherever a program is traced,
it is layers of ``laser.ops.linear`` and PyTorch's GELU.

Legend of shape suffixes: N rows; H groups; I inputs; F hidden; O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from laser.ops.availability import use_triton
from laser.ops.feed_forward.functions import FeedForward
from laser.ops.linear import as_autocast_would, grouped_linear, linear

__all__ = ["feed_forward", "grouped_feed_forward"]

NARROWEST = 16
"""As tensor cores multiply."""
MOST_ROWS = 1 << 30


def feed_forward(x_NI: Tensor, weight1_FI: Tensor, bias1_F: Tensor, weight2_OF: Tensor, bias2_O: Tensor) -> Tensor:
    """W2 GELU(W1 x + b1) + b2, weights as of ``nn.Linear``, GELU by erf, not tanh; under autocast in its dtype.

    On CUDA differentiable once; equal inputs give equal bits, forward and backward.

    Args:
        x_NI: [..., I]; float32, bfloat16, float16, or float64 (PyTorch's).
        weight1_FI: [F, I], of the same dtype unless autocast makes it so.
        bias1_F: [F], likewise.
        weight2_OF: [O, F], likewise.
        bias2_O: [O], likewise.

    Returns:
        [..., O].

    Raises:
        RuntimeError: PyTorch's, when shapes or dtypes do not fit each other.
    """
    tensors = x_NI, weight1_FI, bias1_F, weight2_OF, bias2_O
    I, F, O = x_NI.shape[-1:], bias1_F.shape[-1:], bias2_O.shape[-1:]
    if not _serves(tensors, (x_NI.shape, F + I, F, O + F, O)):
        return linear(functional.gelu(linear(x_NI, weight1_FI, bias1_F)), weight2_OF, bias2_O)
    cast: list[Any] = as_autocast_would(*tensors)
    x, weight1, bias1, weight2, bias2 = cast
    x_NHI = x.reshape(-1, 1, x.shape[-1])
    y_NHO = FeedForward.apply(x_NHI, weight1.t()[None], bias1[None], weight2.t()[None], bias2[None])
    return y_NHO.reshape(*x_NI.shape[:-1], bias2.shape[0])


def grouped_feed_forward(
    x_NHI: Tensor, weight1_HIF: Tensor, bias1_HF: Tensor, weight2_HFO: Tensor, bias2_HO: Tensor
) -> Tensor:
    """The same with its own weights for each group h: GELU(x_h W1_h + b1_h) W2_h + b2_h.

    Args:
        x_NHI: [N, H, I]; dtypes as of ``feed_forward``. Any strides.
        weight1_HIF: [H, I, F].
        bias1_HF: [H, F].
        weight2_HFO: [H, F, O].
        bias2_HO: [H, O].

    Returns:
        [N, H, O].

    Raises:
        RuntimeError: PyTorch's, when shapes or dtypes do not fit each other.
    """
    tensors = x_NHI, weight1_HIF, bias1_HF, weight2_HFO, bias2_HO
    H, I, F, O = x_NHI.shape[1:-1], x_NHI.shape[-1:], bias1_HF.shape[-1:], bias2_HO.shape[-1:]
    if not _serves(tensors, (x_NHI.shape[:1] + H + I, H + I + F, H + F, H + F + O, H + O)):
        hidden_NHF = functional.gelu(grouped_linear(x_NHI, weight1_HIF, bias1_HF))
        return grouped_linear(hidden_NHF, weight2_HFO, bias2_HO)
    return FeedForward.apply(*as_autocast_would(*tensors))


def _serves(tensors: tuple[Tensor, ...], shapes: tuple[torch.Size, ...]) -> bool:
    """Whether Triton takes these tensors, the first of which is x, in the dtype that autocast gives them.

    They should have these shapes: kernels would read beyond others, of which PyTorch says what is wrong.
    """
    # Traced first: asking for sizes would put guards into a program whose sizes are symbols.
    if torch.compiler.is_compiling():
        return False
    if any(tensor.shape != shape for tensor, shape in zip(tensors, shapes, strict=True)):
        return False
    x, device = tensors[0], tensors[0].device.type
    autocast = torch.is_autocast_enabled(device)
    dtypes = {torch.get_autocast_dtype(device)} if autocast else {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= {torch.bfloat16, torch.float16}:
        return False
    wide = all(tensor.shape[-1] >= NARROWEST for tensor in tensors)
    return wide and 0 < x.numel() // x.shape[-1] <= MOST_ROWS and all(map(use_triton, tensors))
