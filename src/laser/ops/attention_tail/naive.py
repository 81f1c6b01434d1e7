"""What follows the weighted mean in a layer of attention, in plain PyTorch: the specification.

Legend of shape suffixes: N rows; H heads; D width; V value width of a head, D / H; F hidden.
"""

from __future__ import annotations

from torch import Tensor

from laser.ops.feed_forward.naive import grouped_feed_forward
from laser.ops.linear.naive import grouped_linear, linear
from laser.ops.residual_norm.naive import residual_norm


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
    """LN(a + W2 GELU(W1 a + b1) + b2) of a = LN(user + W_O v); see the package for shapes and dtypes."""
    o_ND = linear(grouped_linear(pooled_NHD, value_HDV, None).flatten(1), out_DD, None)
    a_ND = residual_norm(user_ND, o_ND, inner_weight_D, inner_bias_D, eps)
    weights = weight1_FD.t()[None], bias1_F[None], weight2_DF.t()[None], bias2_D[None]
    f_ND = grouped_feed_forward(a_ND[:, None].to(weight1_FD.dtype), *weights)[:, 0]
    return residual_norm(a_ND, f_ND, outer_weight_D, outer_bias_D, eps)
