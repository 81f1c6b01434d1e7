"""The two dense building blocks, initialised as the model wants them: Linear and feed-forward network."""

from __future__ import annotations

from torch import nn


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Linear layer with Xavier-uniform weights (gain 1) and zero biases (our choice)."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class FeedForward(nn.Sequential):
    """width -> multiple * width -> width with GELU and biases; the width of 4 is inferred from the published costs."""

    def __init__(self, width: int, multiple: int = 4) -> None:
        super().__init__(linear(width, multiple * width), nn.GELU(), linear(multiple * width, width))
