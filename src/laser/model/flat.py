"""Dense parameters, or their gradients, in one tensor, each where an allocation of its own might begin.

    weight [3, 40]            bias [40]
    [ . . . . . | gap ]       [ . . | gap ]

What is done to all of them is then one launch: the host has little time for a step.

Legend of shape suffixes: P all of them and the gaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

MULTIPLE = 32
"""Elements: 128 bytes of float32, a cache line of a GPU; kernels are compiled for addresses of 16 bytes' multiples."""


class Flat:
    """Where each of some tensors lies.

    Args:
        tensors: of these shapes, in this order.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.shapes = [tensor.shape for tensor in tensors]
        numbers = [math.prod(shape) for shape in self.shapes]
        self.parts = [part for number in numbers for part in (number, -number % MULTIPLE)]
        self.size = sum(self.parts)
        """P."""

    def views(self, flat_P: Tensor) -> list[Tensor]:
        """The tensors."""
        return [part.view(shape) for part, shape in zip(flat_P.split(self.parts)[::2], self.shapes, strict=True)]

    def filled(self, tensors: list[Tensor]) -> Tensor:
        """A flat tensor [P] with these values, and zeros between."""
        flat_P = tensors[0].new_zeros(self.size)
        torch._foreach_copy_(self.views(flat_P), tensors)
        return flat_P
