# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""Mean of the newest events in Triton: a program takes one history, whose newest events are consecutive rows.

Legend of shape suffixes: U distinct histories; T history events, packed; N newest events (in kernels: of one tile);
D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["newest"])
def forward_kernel(
    x_TD,
    off_U1,
    mean_UD,
    newest,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Mean of one history's newest events; zeros where it has none."""
    history = tl.program_id(0).to(tl.int64)
    start = tl.load(off_U1 + history)
    end = tl.load(off_U1 + history + 1)
    count = tl.minimum(end - start, newest).to(tl.int32)
    n_N = tl.arange(0, BLOCK_N)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    sum_ND = tl.full((BLOCK_N, BLOCK_D), 0.0, tl.float32)
    for first in range(0, count, BLOCK_N):
        event_N = first + n_N
        mask_ND = (event_N < count)[:, None] & in_D[None, :]
        x_at = x_TD + (end - count + event_N)[:, None] * D + d_D[None, :]
        sum_ND += tl.load(x_at, mask=mask_ND, other=0.0).to(tl.float32)
    mean_D = tl.sum(sum_ND, axis=0) / tl.maximum(count, 1).to(tl.float32)
    tl.store(mean_UD + history * D + d_D, mean_D.to(mean_UD.dtype.element_ty), mask=in_D)


@triton.jit(do_not_specialize=["newest"])
def backward_kernel(
    d_mean_UD,
    off_U1,
    d_x_TD,
    newest,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add the mean's gradient to that of one history's newest events, in place."""
    history = tl.program_id(0).to(tl.int64)
    start = tl.load(off_U1 + history)
    end = tl.load(off_U1 + history + 1)
    count = tl.minimum(end - start, newest).to(tl.int32)
    n_N = tl.arange(0, BLOCK_N)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    d_mean_D = tl.load(d_mean_UD + history * D + d_D, mask=in_D, other=0.0).to(tl.float32)
    share_D = d_mean_D / tl.maximum(count, 1).to(tl.float32)
    for first in range(0, count, BLOCK_N):
        event_N = first + n_N
        mask_ND = (event_N < count)[:, None] & in_D[None, :]
        d_x_at = d_x_TD + (end - count + event_N)[:, None] * D + d_D[None, :]
        d_x = tl.load(d_x_at, mask=mask_ND, other=0.0).to(tl.float32) + share_D[None, :]
        tl.store(d_x_at, d_x.to(d_x_TD.dtype.element_ty), mask=mask_ND)


def config(D: int) -> dict[str, int]:
    """Tile and launch of both kernels."""
    block_d = int(triton.next_power_of_2(D))
    return {"BLOCK_D": block_d, "BLOCK_N": max(1, min(32, 4096 // block_d)), "num_warps": 4}


def forward(x_TD: Tensor, off_U1: Tensor, newest: int, dtype: torch.dtype) -> Tensor:
    """Mean [U, D] of each history's newest events, in ``dtype``; inputs contiguous."""
    U, D = len(off_U1) - 1, x_TD.shape[1]
    mean_UD = x_TD.new_empty(U, D, dtype=dtype)
    if mean_UD.numel():
        launch: Any = forward_kernel[(U,)]
        launch(x_TD, off_U1, mean_UD, newest, D=D, **config(D))
    return mean_UD


def add_gradient(d_x_TD: Tensor, d_mean_UD: Tensor, off_U1: Tensor, newest: int) -> None:
    """Add the mean's gradient to ``d_x_TD``, in place; inputs contiguous."""
    U, D = d_mean_UD.shape
    if d_mean_UD.numel():
        launch: Any = backward_kernel[(U,)]
        launch(d_mean_UD, off_U1, d_x_TD, newest, D=D, **config(D))
