# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""Dropout's factors in Triton: every program hashes the step once and its elements in registers.

Legend of shape suffixes: N rows; E elements of a row; I elements of a program.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from laser.ops.keep_factor.naive import GOLDEN, MULTIPLY_1, MULTIPLY_2, kept, signed, threshold

_GOLDEN, _MULTIPLY_1, _MULTIPLY_2 = tl.constexpr(GOLDEN), tl.constexpr(MULTIPLY_1), tl.constexpr(MULTIPLY_2)
BLOCK = 1024


@triton.jit
def mix(value):
    """Finaliser of splitmix64 on uint64."""
    value = (value ^ (value >> 30)) * _MULTIPLY_1
    value = (value ^ (value >> 27)) * _MULTIPLY_2
    return value ^ (value >> 31)


@triton.jit(do_not_specialize=["site", "kept", "num_elements"])
def factor_kernel(
    step_,
    site,
    key_N,
    position_N,
    factor_NE,
    kept,
    num_elements,
    E: tl.constexpr,
    THRESHOLD: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Factors of BLOCK_I elements."""
    i_I = tl.program_id(0).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    live_I = i_I < num_elements
    row_I = i_I // E
    step = tl.load(step_).to(tl.uint64, bitcast=True)
    state = mix(mix(step) + site.to(tl.int64).to(tl.uint64, bitcast=True))
    key_I = tl.load(key_N + row_I, mask=live_I, other=0).to(tl.uint64, bitcast=True)
    if POSITIONS:
        position_I = tl.load(position_N + i_I, mask=live_I, other=0).to(tl.uint64, bitcast=True)
    else:
        position_I = (i_I - row_I * E).to(tl.uint64, bitcast=True)
    mixed_I = mix(mix(key_I + state) + position_I * _GOLDEN)
    # The upper 32 bits fit an int64, whose comparison every backend has.
    survives_I = (mixed_I >> 32).to(tl.int64, bitcast=True) >= THRESHOLD
    factor_I = tl.where(survives_I, kept, 0.0)
    tl.store(factor_NE + i_I, factor_I.to(factor_NE.dtype.element_ty), mask=live_I)


def keep_factor(
    probability: float, site: int, step: int | Tensor, key_N: Tensor, position: Tensor | int, dtype: torch.dtype
) -> Tensor:
    """Factors [N] or [N, E]; see the package."""
    elements = position if isinstance(position, int) else 1
    shape = (len(key_N), position) if isinstance(position, int) else (len(key_N),)
    factor = torch.empty(shape, dtype=dtype, device=key_N.device)
    if not factor.numel():
        return factor
    if not isinstance(step, Tensor):
        step = torch.full((), step, dtype=torch.int64, device=key_N.device)
    key_N = key_N.contiguous()
    launch: Any = factor_kernel[(triton.cdiv(factor.numel(), BLOCK),)]
    launch(
        step,
        signed(site + GOLDEN),
        key_N,
        position.contiguous() if isinstance(position, Tensor) else key_N,  # any pointer does where it is not read
        factor,
        kept(probability, dtype),
        factor.numel(),
        E=elements,
        THRESHOLD=threshold(probability),
        POSITIONS=isinstance(position, Tensor),
        BLOCK_I=BLOCK,
        num_warps=4,
    )
    return factor
