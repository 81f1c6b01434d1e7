"""Zeros in the rows behind those of the last sample, and there alone: most of a tensor need not be written twice.

Which rows these are is known on the device alone. Layouts have them where their sizes are those of a ``Capacity``.

Legend of shape suffixes: B samples; G segments, packed; N elements of a program.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 1 << 14
"""Of a program. Most programs find nothing to do, so there are few."""


@triton.jit(do_not_specialize=["num_samples", "row_elements", "num_elements"])
def zero_kernel(rows_GD, off_B1, num_samples, row_elements, num_elements, ELEMENTS: tl.constexpr):
    """Zero those elements of the program's that belong to no sample."""
    first = tl.program_id(0).to(tl.int64) * ELEMENTS
    used = tl.load(off_B1 + num_samples) * row_elements
    if first + ELEMENTS > used:
        at_N = first + tl.arange(0, ELEMENTS)
        zeros_N = tl.zeros((ELEMENTS,), rows_GD.dtype.element_ty)
        tl.store(rows_GD + at_N, zeros_N, mask=(at_N >= used) & (at_N < num_elements))


def zero_spare_rows(rows_GD: Tensor, off_B1: Tensor) -> Tensor:
    """Zero rows from ``off_B1[-1]`` on of a contiguous tensor, and return it.

    Args:
        rows_GD: [G, ...], on CUDA.
        off_B1: int64 [B + 1].
    """
    if rows_GD.numel():
        launch: Any = zero_kernel[(-(-rows_GD.numel() // ELEMENTS),)]
        launch(rows_GD, off_B1, len(off_B1) - 1, rows_GD[0].numel(), rows_GD.numel(), ELEMENTS=ELEMENTS, num_warps=8)
    return rows_GD
