"""What follows the weighted mean in a layer of attention: values, W_O, norm, feed-forward network, norm.

On CUDA in half precision it is one kernel forward, and backward one for all gradients of rows; PyTorch multiplies for
the gradients of weights. With rows as few as samples the parts, one after another, would each take little more than a
launch.

``naive`` is the specification. Off CUDA, in float32 and float64, for other sizes than those below and wherever a
program is traced, it is ``laser.ops.linear``, ``residual_norm`` and ``feed_forward`` one after another.

Legend of shape suffixes: N rows; H heads; D width; V value width of a head, D / H; F hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from laser.ops.attention_tail.functions import AttentionTail
from laser.ops.availability import use_triton
from laser.ops.feed_forward import feed_forward
from laser.ops.linear import as_autocast_would, grouped_linear, linear
from laser.ops.residual_norm import residual_norm

__all__ = ["attention_tail"]

WIDTHS = (32, 64, 128)
"""D of which a program holds rows, and two blocks of weights three times."""
NARROWEST = 16
"""Columns of a head's values, and of the hidden layer: as tensor cores multiply."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attention_tail(
    user_ND: Tensor,
    pooled_NHD: Tensor,
    value_HDV: Tensor,
    out_DD: Tensor,
    inner_weight_D: Tensor,
    inner_bias_D: Tensor,
    weight1_FD: Tensor,
    bias1_F: Tensor,
    weight2_DF: Tensor,
    bias2_D: Tensor,
    outer_weight_D: Tensor,
    outer_bias_D: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """LN(a + W2 GELU(W1 a + b1) + b2), where a = LN(user + W_O v) and v are the values of all heads, one after another.

    GELU by erf, not tanh (``laser.ops.feed_forward``). The kernels multiply in half precision and sum in float32; norms
    and residuals are float32. On CUDA differentiable once; equal inputs give equal bits, forward and backward.

    Args:
        user_ND: [N, D]; float32, bfloat16, float16, or float64 (PyTorch's).
        pooled_NHD: [N, H, D], weighted means of each head.
        value_HDV: [H, D, V], where H V = D; like all weights but norms' of the dtype of ``pooled_NHD``, unless autocast
            makes it so.
        out_DD: W_O, [outputs, inputs].
        inner_weight_D: of the norm that gives a, as is the next.
        inner_bias_D: [D].
        weight1_FD: [F, D].
        bias1_F: [F].
        weight2_DF: [D, F].
        bias2_D: [D].
        outer_weight_D: of the norm that comes last, as is the next.
        outer_bias_D: [D].
        eps: of both norms, added to the variance.

    Returns:
        [N, D]; float32 under CUDA's autocast, as PyTorch's norm is.
    """
    rows, norms = (user_ND, pooled_NHD), (inner_weight_D, inner_bias_D, outer_weight_D, outer_bias_D)
    weights = value_HDV, out_DD, weight1_FD, bias1_F, weight2_DF, bias2_D
    if not _serves(rows, weights, norms):
        o_ND = linear(grouped_linear(pooled_NHD, value_HDV).flatten(1), out_DD)
        a_ND = residual_norm(user_ND, o_ND, inner_weight_D, inner_bias_D, eps)
        f_ND = feed_forward(a_ND, weight1_FD, bias1_F, weight2_DF, bias2_D)
        return residual_norm(a_ND, f_ND, outer_weight_D, outer_bias_D, eps)
    cast: list[Any] = as_autocast_would(pooled_NHD, *weights)
    dtype = torch.float32 if torch.is_autocast_enabled(user_ND.device.type) else user_ND.dtype
    return AttentionTail.apply(user_ND, *cast, *norms, eps, dtype)


def _serves(rows: tuple[Tensor, ...], weights: tuple[Tensor, ...], norms: tuple[Tensor, ...]) -> bool:
    """Whether Triton takes these tensors, in the dtype that autocast gives all but the first and the norms'.

    They should fit each other: kernels would read beyond, where PyTorch says what is wrong.
    """
    # Traced first: asking for sizes would put guards into a program whose sizes are symbols.
    if torch.compiler.is_compiling():
        return False
    user_ND, pooled_NHD = rows
    value_HDV, bias1_F = weights[0], weights[3]
    if user_ND.dim() != 2 or value_HDV.dim() != 3 or bias1_F.dim() != 1:
        return False
    (N, D), H, F = user_ND.shape, value_HDV.shape[0], bias1_F.shape[0]
    if D not in WIDTHS or H < 1 or D // H < NARROWEST or F < NARROWEST or any(size & (size - 1) for size in (H, F)):
        return False
    shapes = [(N, H, D), (H, D, D // H), (D, D), (F, D), (F,), (D, F), (D,), *[(D,)] * 4]
    if [tuple(tensor.shape) for tensor in (pooled_NHD, *weights, *norms)] != shapes:
        return False
    device = user_ND.device.type
    autocast = torch.is_autocast_enabled(device)
    dtypes = {torch.get_autocast_dtype(device)} if autocast else {tensor.dtype for tensor in (*rows, *weights)}
    if len(dtypes) > 1 or not dtypes <= {torch.bfloat16, torch.float16}:
        return False
    tensors = (*rows, *weights, *norms)
    return all(tensor.dtype in DTYPES for tensor in tensors) and all(map(use_triton, tensors))
