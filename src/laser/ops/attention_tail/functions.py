"""What follows the weighted mean as an autograd function: a kernel each way, and products for weights; see the package.

Legend of shape suffixes: N rows; H heads; D width; V value width of a head, D / H; F hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from laser.ops.linear.functions import weight_gradient


class AttentionTail(torch.autograd.Function):
    """Arguments as of ``attention_tail``, cast, and with norms' weights last; and the dtype of the result."""

    @staticmethod
    def forward(
        ctx: Any,
        user_ND: Tensor,
        pooled_NHD: Tensor,
        value_HDV: Tensor,
        out_DD: Tensor,
        weight1_FD: Tensor,
        bias1_F: Tensor,
        weight2_DF: Tensor,
        bias2_D: Tensor,
        inner_weight_D: Tensor,
        inner_bias_D: Tensor,
        outer_weight_D: Tensor,
        outer_bias_D: Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """[N, D]. What comes out of each product is kept, in half precision; norms and GELU are computed again."""
        from laser.ops.attention_tail import triton

        weights = (value_HDV, out_DD, weight1_FD, bias1_F, weight2_DF, bias2_D)
        norms = (inner_weight_D, inner_bias_D, outer_weight_D, outer_bias_D)
        y_ND, *kept = triton.forward(user_ND, pooled_NHD, weights, norms, eps, dtype)
        ctx.save_for_backward(user_ND, pooled_NHD, *weights, *norms, *kept)
        ctx.eps = eps
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_ND: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of all inputs, in their dtype; that of ``value_HDV`` has its strides."""
        from laser.ops.attention_tail import triton

        user_ND, pooled_NHD = ctx.saved_tensors[:2]
        weights, norms, (v_ND, *kept) = ctx.saved_tensors[2:8], ctx.saved_tensors[8:12], ctx.saved_tensors[12:]
        of = triton.backward(d_y_ND, user_ND, weights, norms, kept, ctx.eps)
        value_HDV, d_bias1_F, d_bias2_D = weights[0], *of.d_biases
        return (
            of.d_user_ND,
            of.d_pooled_NHD,
            weight_gradient(pooled_NHD, of.d_v_ND.unflatten(1, (value_HDV.shape[0], -1)), value_HDV),
            of.d_o_ND.t() @ v_ND,
            of.d_hidden_NF.t() @ of.a_ND,
            d_bias1_F,
            of.d_f_ND.t() @ of.active_NF,
            d_bias2_D,
            *of.d_norms,
            None,
            None,
        )
