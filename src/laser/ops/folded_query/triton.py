# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""Queries of folded heads in Triton: a program takes BLOCK_B samples through both products, BLOCK_Q columns a step.

Forward it takes one head; backward all of them, one after another, whose gradients it adds up in registers: no atomics,
so that equal inputs give equal bits. Float32 is multiplied in six passes of bfloat16 (``laser.ops.products``).

Legend of shape suffixes: B samples (in kernels: of one program); D width; H heads; Q query width of a head (in kernels:
of one step).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from laser.ops.products import product

BLOCK_B = 16
"""As few rows as tensor cores multiply."""


@triton.jit(do_not_specialize=["B"])
def forward_kernel(
    source_BD, query_HDQ, key_HDQ, folded_BHD, scaled_BHQ, B, scale,
    H: tl.constexpr, D: tl.constexpr, Q: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_Q: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One head of BLOCK_B samples, and what lies between the products."""
    b_B = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    head = tl.program_id(1)
    row_B = b_B * H + head
    d_D = tl.arange(0, D)
    live_B1 = (b_B < B)[:, None]
    source = tl.load(source_BD + b_B[:, None] * D + d_D[None, :], mask=live_B1, other=0.0)
    zeros_BQ, sum_BD = tl.zeros((BLOCK_B, BLOCK_Q), tl.float32), tl.zeros((BLOCK_B, D), tl.float32)
    for first in tl.range(0, Q, BLOCK_Q, num_stages=STAGES):
        q_Q = first + tl.arange(0, BLOCK_Q)
        weight_DQ = tl.load(query_HDQ + head * (D * Q) + d_D[:, None] * Q + q_Q[None, :])
        scaled = product(source, weight_DQ, zeros_BQ, False) * scale
        tl.store(scaled_BHQ + row_B[:, None] * Q + q_Q[None, :], scaled, mask=live_B1)
        weight_QD = tl.load(key_HDQ + head * (D * Q) + d_D[None, :] * Q + q_Q[:, None])
        sum_BD = product(scaled, weight_QD, sum_BD, False)
    tl.store(folded_BHD + row_B[:, None] * D + d_D[None, :], sum_BD, mask=live_B1)


@triton.jit(do_not_specialize=["B"])
def backward_kernel(
    d_folded_BHD, query_HDQ, key_HDQ, d_source_BD, d_query_BHQ, B, scale,
    H: tl.constexpr, D: tl.constexpr, Q: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_Q: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK_B samples: of the source, and of what it gives by W_Q."""
    b_B = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    d_D = tl.arange(0, D)
    live_B1 = (b_B < B)[:, None]
    zeros_BQ, sum_BD = tl.zeros((BLOCK_B, BLOCK_Q), tl.float32), tl.zeros((BLOCK_B, D), tl.float32)
    for first in tl.range(0, H * Q, BLOCK_Q, num_stages=STAGES):
        head = first // Q
        row_B = b_B * H + head
        q_Q = first % Q + tl.arange(0, BLOCK_Q)
        weight_at_DQ = head * (D * Q) + d_D[:, None] * Q + q_Q[None, :]
        weight_at_QD = head * (D * Q) + d_D[None, :] * Q + q_Q[:, None]
        d_folded = tl.load(d_folded_BHD + row_B[:, None] * D + d_D[None, :], mask=live_B1, other=0.0)
        d_query = product(d_folded, tl.load(key_HDQ + weight_at_DQ), zeros_BQ, False) * scale
        tl.store(d_query_BHQ + row_B[:, None] * Q + q_Q[None, :], d_query, mask=live_B1)
        sum_BD = product(d_query, tl.load(query_HDQ + weight_at_QD), sum_BD, False)
    tl.store(d_source_BD + b_B[:, None] * D + d_D[None, :], sum_BD, mask=live_B1)


def config(Q: int) -> dict[str, int]:
    """Tile and launch of both kernels: by shape, never by timing."""
    return {"BLOCK_B": BLOCK_B, "BLOCK_Q": min(64, Q), "STAGES": 2, "num_warps": 4 if Q <= 32 else 8}


def forward(source_BD: Tensor, query_HDQ: Tensor, key_HDQ: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Result [B, H, D], and scale source W_Q [B, H, Q]; contiguous."""
    B, (H, D, Q) = source_BD.shape[0], query_HDQ.shape
    folded_BHD, scaled_BHQ = source_BD.new_empty(B, H, D), source_BD.new_empty(B, H, Q)
    if B:
        inputs = [tensor.contiguous() for tensor in (source_BD, query_HDQ, key_HDQ)]
        launch: Any = forward_kernel[(triton.cdiv(B, BLOCK_B), H)]
        launch(*inputs, folded_BHD, scaled_BHQ, B, float(scale), H=H, D=D, Q=Q, **config(Q))
    return folded_BHD, scaled_BHQ


def backward(d_folded_BHD: Tensor, query_HDQ: Tensor, key_HDQ: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients of the source [B, D] and of source W_Q [B, H, Q]; contiguous."""
    B, (H, D, Q) = d_folded_BHD.shape[0], query_HDQ.shape
    d_source_BD, d_query_BHQ = query_HDQ.new_empty(B, D), query_HDQ.new_empty(B, H, Q)
    if B:
        inputs = [tensor.contiguous() for tensor in (d_folded_BHD, query_HDQ, key_HDQ)]
        launch: Any = backward_kernel[(triton.cdiv(B, BLOCK_B),)]
        launch(*inputs, d_source_BD, d_query_BHQ, B, float(scale), H=H, D=D, Q=Q, **config(Q))
    return d_source_BD, d_query_BHQ
