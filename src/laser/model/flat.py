"""Dense parameters, or their gradients, in one tensor, each where an allocation of its own might begin.

    weight [3, 40]            bias [40]
    [ . . . . . | gap ]       [ . . | gap ]

What is done to all of them is then one launch: the host has little time for a step.

Legend of shape suffixes: P all of them and the gaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

MULTIPLE = 128
"""Elements: 256 bytes of half precision. cuBLAS chooses its kernels by the alignment of addresses, up to so many."""


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

    def holding(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """The flat tensor [P] that these tensors are the parts of, or ``None`` if they lie otherwise."""
        if not tensors:
            return None
        first = tensors[0].detach()
        begin, length = first.storage_offset(), first.untyped_storage().nbytes() // first.element_size()
        if begin + self.size > length:
            return None
        flat_P = first.as_strided((self.size,), (1,))
        for tensor, view in zip(tensors, self.views(flat_P), strict=True):
            if (tensor.data_ptr(), tensor.dtype, tensor.stride()) != (view.data_ptr(), view.dtype, view.stride()):
                return None
        return flat_P

    def filled(self, tensors: list[Tensor]) -> Tensor:
        """A flat tensor [P] with these values, and zeros between."""
        flat_P = tensors[0].new_zeros(self.size)
        torch._foreach_copy_(self.views(flat_P), tensors)
        return flat_P
