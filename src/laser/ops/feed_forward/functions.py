"""Feed-forward networks as an autograd function over two kernels of ours and PyTorch's products; see the package.

Legend of shape suffixes: N rows; H groups; I inputs; F hidden; O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from laser.ops.linear.functions import column_sum, repeated, weight_gradient


class FeedForward(torch.autograd.Function):
    """A network per group; arguments as ``grouped_feed_forward``, all of one dtype."""

    @staticmethod
    def forward(
        ctx: Any, x_NHI: Tensor, weight1_HIF: Tensor, bias1_HF: Tensor, weight2_HFO: Tensor, bias2_HO: Tensor
    ) -> Tensor:
        """[N, H, O]. The hidden layer is kept before and after GELU."""
        from laser.ops.feed_forward import triton

        hidden_HNF, active_HNF = triton.hidden(x_NHI, weight1_HIF, bias1_HF)
        ctx.save_for_backward(x_NHI, weight1_HIF, weight2_HFO, hidden_HNF, active_HNF)
        if len(weight2_HFO) == 1:
            return torch.addmm(bias2_HO[0], active_HNF[0], weight2_HFO[0])[:, None]
        return repeated(bias2_HO, x_NHI.shape[0]).baddbmm_(active_HNF, weight2_HFO).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_NHO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of all inputs, in their dtype; those of weights have their strides."""
        from laser.ops.feed_forward import triton

        x_NHI, weight1_HIF, weight2_HFO, hidden_HNF, active_HNF = ctx.saved_tensors
        d_hidden_HNF, d_bias1_HF = triton.d_hidden(d_y_NHO, weight2_HFO, hidden_HNF)
        d_x_NHI = None
        if ctx.needs_input_grad[0]:
            d_x_NHI = torch.empty_like(x_NHI)
            torch.bmm(d_hidden_HNF, weight1_HIF.transpose(1, 2), out=d_x_NHI.transpose(0, 1))
        return (
            d_x_NHI,
            weight_gradient(x_NHI, d_hidden_HNF.transpose(0, 1), weight1_HIF),
            d_bias1_HF,
            weight_gradient(active_HNF.transpose(0, 1), d_y_NHO, weight2_HFO),
            column_sum(d_y_NHO.transpose(0, 1)),
        )
