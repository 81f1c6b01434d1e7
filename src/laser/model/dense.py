"""The dense building blocks: Linear and feed-forward network, initialised as the model wants them, and LN(a + b)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from laser.ops.feed_forward import feed_forward
from laser.ops.linear import linear as linear_op
from laser.ops.residual_norm import residual_norm


class Linear(nn.Linear):
    """``nn.Linear``: its parameters and values, with the backward pass of ``laser.ops.linear`` on CUDA."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return linear_op(input, self.weight, self.bias)


def linear(inputs: int, outputs: int, *, bias: bool = True) -> Linear:
    """Linear layer with Xavier-uniform weights (gain 1) and zero biases (our choice)."""
    layer = Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class FeedForward(nn.Sequential):
    """width -> multiple * width -> width with GELU and biases; the width of 4 is inferred from the published costs."""

    def __init__(self, width: int, multiple: int = 4) -> None:
        super().__init__(linear(width, multiple * width), nn.GELU(), linear(multiple * width, width))

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of the first layer, then of the second."""
        first, second = cast(Linear, self[0]), cast(Linear, self[2])
        return first.weight, first.bias, second.weight, second.bias

    def forward(self, input: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return feed_forward(input, *self.weights)


class ResidualNorm(nn.LayerNorm):
    """Layer norm, of a sum where there is one: parameters and values of ``nn.LayerNorm``, one kernel on CUDA.

    Args:
        width: of what is normalised.
        widens: whether under autocast a normed sum is float32, as that of ``nn.LayerNorm``.
    """

    def __init__(self, width: int, *, widens: bool = True) -> None:
        super().__init__(width)
        self.widens = widens

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """LN(input + residual), or LN(input)."""
        if residual is None:
            return super().forward(input)
        return residual_norm(input, residual, self.weight, self.bias, self.eps, widens=self.widens)
