# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples; some names are assigned and read under the
# same compile-time condition.
# pyrefly: ignore-errors
"""A gated recurrence in Triton: a program takes BLOCK_B samples through all events, its weights in registers.

Forward: three products with square matrices an event, on tensor cores. Backward: gates are computed again from the
saved states, of all events at once and so not in the loop, then a program takes its samples from the newest event to
the oldest, again with three products an event. Samples are nowhere shared, so there are no atomics; the gradients of
the weights are sums over all events, which PyTorch multiplies.

Products keep the precision of ``laser.ops.products``; state, gates and sums are float32. Weights in float32 do not fit
the registers as sums of three bfloat16: they are read again for every event, from the caches.

Legend of shape suffixes: B samples (in kernels: of one tile); L events; N events of all samples; D width; P products of
update, reset and candidate, 3D (of weights of both gates, 2D).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from laser.ops.products import halves, load_side, product

SAMPLES, EVENTS = 16, 64
"""Tiles of the recurrence, the fewest rows that tensor cores multiply, and of the gates of all events."""


@triton.jit
def tanh(x):
    """By its series where the quotient would cancel."""
    fade = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - fade) / (1.0 + fade)
    square = x * x
    series = 1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
    return tl.where(tl.abs(x) < 0.25, x * series, tl.where(x < 0, -far, far))


@triton.jit
def load_weight(weight_DD, D: tl.constexpr, BLOCK_D: tl.constexpr, TRANSPOSED: tl.constexpr, SPLIT: tl.constexpr):
    """A square matrix as the right side of products."""
    row_D1 = tl.arange(0, BLOCK_D)[:, None]
    column_1D = tl.arange(0, BLOCK_D)[None, :]
    if TRANSPOSED:  # noqa: SIM108  (Triton decides it when it compiles)
        at_DD = column_1D * D + row_D1
    else:
        at_DD = row_D1 * D + column_1D
    return load_side(weight_DD + at_DD, (row_D1 < D) & (column_1D < D), SPLIT)


@triton.jit
def add_product(
    left_BD, weight, sum_BD, D: tl.constexpr, TRANSPOSED: tl.constexpr, SPLIT: tl.constexpr, HOLD: tl.constexpr
):
    """sum + left weight, the weight a matrix held in registers or (not HOLD) where one lies, read only now."""
    if HOLD:
        sum_BD = product(left_BD, weight, sum_BD, SPLIT)
    else:
        weight_DD = load_weight(weight, D, left_BD.shape[1], TRANSPOSED, SPLIT)
        sum_BD = product(left_BD, weight_DD, sum_BD, SPLIT)
    return sum_BD


@triton.jit
def gates(
    products_at, mask_BD, state_BD, update, reset, candidate, D: tl.constexpr, SPLIT: tl.constexpr, HOLD: tl.constexpr
):
    """Update (without its scale), reset and candidate of one event of each sample, the weights as ``add_product``'s."""
    update_BD = tl.load(products_at, mask=mask_BD, other=0.0).to(tl.float32)
    reset_BD = tl.load(products_at + D, mask=mask_BD, other=0.0).to(tl.float32)
    candidate_BD = tl.load(products_at + 2 * D, mask=mask_BD, other=0.0).to(tl.float32)
    reset_BD = tl.sigmoid(add_product(state_BD, reset, reset_BD, D, True, SPLIT, HOLD))
    update_BD = tl.sigmoid(add_product(state_BD, update, update_BD, D, True, SPLIT, HOLD))
    candidate_BD = tanh(add_product(reset_BD * state_BD, candidate, candidate_BD, D, True, SPLIT, HOLD))
    return update_BD, reset_BD, candidate_BD


@triton.jit(do_not_specialize=["num_samples", "num_events"])
def forward_kernel(
    products_BLP,
    scale_BL,
    gates_PD,
    candidate_DD,
    states_BLD,
    num_samples,
    num_events,
    D: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    HOLD: tl.constexpr,
):
    """States of BLOCK_B samples, from the oldest event to the newest; HOLD: the weights are read once."""
    sample_B = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    live_B = sample_B < num_samples
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    mask_BD = live_B[:, None] & in_D[None, :]
    update = gates_PD
    reset = gates_PD + D * D
    candidate = candidate_DD
    if HOLD:
        update = load_weight(update, D, BLOCK_D, True, SPLIT)
        reset = load_weight(reset, D, BLOCK_D, True, SPLIT)
        candidate = load_weight(candidate, D, BLOCK_D, True, SPLIT)
    state_BD = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    for event in tl.range(0, num_events, num_stages=STAGES):
        row_B = sample_B * num_events + event
        products_at = products_BLP + row_B[:, None] * (3 * D) + d_D[None, :]
        update_BD, _, candidate_BD = gates(products_at, mask_BD, state_BD, update, reset, candidate, D, SPLIT, HOLD)
        update_BD *= tl.load(scale_BL + row_B, mask=live_B, other=0.0).to(tl.float32)[:, None]
        state_BD = (1.0 - update_BD) * state_BD + update_BD * candidate_BD
        tl.store(states_BLD + row_B[:, None] * D + d_D[None, :], state_BD, mask=mask_BD)


@triton.jit(do_not_specialize=["num_rows"])
def gates_kernel(
    products_NP,
    previous_ND,
    gates_PD,
    candidate_DD,
    gates_NP,
    num_rows,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Update (without its scale), reset and candidate of BLOCK_N events, from the states before them."""
    row_N = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    mask_ND = (row_N < num_rows)[:, None] & in_D[None, :]
    previous = tl.load(previous_ND + row_N[:, None] * D + d_D[None, :], mask=mask_ND, other=0.0)
    at_NP = row_N[:, None] * (3 * D) + d_D[None, :]
    update_ND, reset_ND, candidate_ND = gates(
        products_NP + at_NP, mask_ND, previous, gates_PD, gates_PD + D * D, candidate_DD, D, SPLIT, False
    )
    tl.store(gates_NP + at_NP, update_ND, mask=mask_ND)
    tl.store(gates_NP + at_NP + D, reset_ND, mask=mask_ND)
    tl.store(gates_NP + at_NP + 2 * D, candidate_ND, mask=mask_ND)


@triton.jit(do_not_specialize=["num_samples", "num_events"])
def backward_kernel(
    d_states_BLD,
    scale_BL,
    previous_BLD,
    gates_BLP,
    gates_PD,
    candidate_DD,
    d_products_BLP,
    d_scale_BL,
    num_samples,
    num_events,
    D: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    HOLD: tl.constexpr,
):
    """Gradients of the products and scales of BLOCK_B samples, from the newest event to the oldest."""
    sample_B = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    live_B = sample_B < num_samples
    d_D = tl.arange(0, BLOCK_D)
    in_D = d_D < D
    mask_BD = live_B[:, None] & in_D[None, :]
    update = gates_PD
    reset = gates_PD + D * D
    candidate = candidate_DD
    if HOLD:
        update = load_weight(update, D, BLOCK_D, False, SPLIT)
        reset = load_weight(reset, D, BLOCK_D, False, SPLIT)
        candidate = load_weight(candidate, D, BLOCK_D, False, SPLIT)
    zeros_BD = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    d_state_BD = zeros_BD
    for newer in tl.range(0, num_events, num_stages=STAGES):
        row_B = sample_B * num_events + (num_events - 1 - newer)
        at_BD = row_B[:, None] * D + d_D[None, :]
        at_BP = row_B[:, None] * (3 * D) + d_D[None, :]
        previous_BD = tl.load(previous_BLD + at_BD, mask=mask_BD, other=0.0)
        gate_BD = tl.load(gates_BLP + at_BP, mask=mask_BD, other=0.0)
        reset_BD = tl.load(gates_BLP + at_BP + D, mask=mask_BD, other=0.0)
        candidate_BD = tl.load(gates_BLP + at_BP + 2 * D, mask=mask_BD, other=0.0)
        scale_B1 = tl.load(scale_BL + row_B, mask=live_B, other=0.0).to(tl.float32)[:, None]
        d_state_BD += tl.load(d_states_BLD + at_BD, mask=mask_BD, other=0.0)

        update_BD = gate_BD * scale_B1
        d_gate_BD = d_state_BD * (candidate_BD - previous_BD) * gate_BD
        tl.store(d_scale_BL + row_B, tl.sum(d_gate_BD, axis=1).to(d_scale_BL.dtype.element_ty), mask=live_B)
        d_update_BD = d_gate_BD * scale_B1 * (1.0 - gate_BD)
        d_candidate_BD = d_state_BD * update_BD * (1.0 - candidate_BD * candidate_BD)
        d_read_BD = add_product(d_candidate_BD, candidate, zeros_BD, D, False, SPLIT, HOLD)
        d_reset_BD = d_read_BD * previous_BD * reset_BD * (1.0 - reset_BD)
        d_state_BD = d_state_BD * (1.0 - update_BD) + d_read_BD * reset_BD
        d_state_BD = add_product(d_update_BD, update, d_state_BD, D, False, SPLIT, HOLD)
        d_state_BD = add_product(d_reset_BD, reset, d_state_BD, D, False, SPLIT, HOLD)
        tl.store(d_products_BLP + at_BP, d_update_BD, mask=mask_BD)
        tl.store(d_products_BLP + at_BP + D, d_reset_BD, mask=mask_BD)
        tl.store(d_products_BLP + at_BP + 2 * D, d_candidate_BD, mask=mask_BD)


def config(D: int, split: bool) -> dict[str, Any]:
    """Tile and launch of the recurrence, forward and backward: by shape and dtype, never by timing."""
    # Tensor cores want 16 columns, too.
    block_d = max(16, int(triton.next_power_of_2(D)))
    return {"BLOCK_B": SAMPLES, "BLOCK_D": block_d, "STAGES": 2, "SPLIT": split, "HOLD": split, "num_warps": 8}


def forward(products_BLP: Tensor, scale_BL: Tensor, gates_PD: Tensor, candidate_DD: Tensor) -> Tensor:
    """States after every event, float32 [B, L, D]; inputs contiguous."""
    (B, L, _), D = products_BLP.shape, len(candidate_DD)
    states_BLD = products_BLP.new_empty(B, L, D, dtype=torch.float32)
    if B * L:
        launch: Any = forward_kernel[(triton.cdiv(B, SAMPLES),)]
        inputs = (products_BLP, scale_BL, gates_PD, candidate_DD)
        launch(*inputs, states_BLD, B, L, D=D, **config(D, halves(candidate_DD.dtype)))
    return states_BLD


def gates_again(products_BLP: Tensor, previous_BLD: Tensor, gates_PD: Tensor, candidate_DD: Tensor) -> Tensor:
    """Update (without its scale), reset and candidate of every event, float32 [B, L, 3D]; inputs contiguous."""
    N, D = previous_BLD.shape[0] * previous_BLD.shape[1], len(candidate_DD)
    gates_BLP = torch.empty_like(products_BLP, dtype=torch.float32)
    split = halves(candidate_DD.dtype)
    launch: Any = gates_kernel[(triton.cdiv(N, EVENTS),)]
    tile = {"BLOCK_N": EVENTS, "BLOCK_D": config(D, split)["BLOCK_D"], "SPLIT": split, "num_warps": 8}
    launch(products_BLP, previous_BLD, gates_PD, candidate_DD, gates_BLP, N, D=D, **tile)
    return gates_BLP


def backward(
    d_states_BLD: Tensor,
    products_BLP: Tensor,
    scale_BL: Tensor,
    gates_PD: Tensor,
    candidate_DD: Tensor,
    states_BLD: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of products, scale and weights, each in its dtype; inputs contiguous."""
    B, L, D = states_BLD.shape
    if not B * L:
        inputs = (products_BLP, scale_BL, gates_PD, candidate_DD)
        d_products, d_scale, d_gates, d_candidate = (torch.zeros_like(tensor) for tensor in inputs)
        return d_products, d_scale, d_gates, d_candidate
    previous_BLD = torch.cat([states_BLD.new_zeros(B, 1, D), states_BLD[:, :-1]], 1)
    gates_BLP = gates_again(products_BLP, previous_BLD, gates_PD, candidate_DD)
    d_products_BLP, d_scale_BL = torch.empty_like(gates_BLP), torch.empty_like(scale_BL)
    launch: Any = backward_kernel[(triton.cdiv(B, SAMPLES),)]
    inputs = (d_states_BLD, scale_BL, previous_BLD, gates_BLP, gates_PD, candidate_DD)
    launch(*inputs, d_products_BLP, d_scale_BL, B, L, D=D, **config(D, halves(candidate_DD.dtype)))

    # Before they are rounded to the dtype of the products.
    d_gates_NP, d_candidate_ND = d_products_BLP.view(B * L, 3 * D).split([2 * D, D], 1)
    read_BLD = gates_BLP[:, :, D : 2 * D] * previous_BLD
    d_gates_PD = d_gates_NP.t() @ previous_BLD.view(B * L, D)
    d_candidate_DD = d_candidate_ND.t() @ read_BLD.view(B * L, D)
    return (
        d_products_BLP.to(products_BLP.dtype),
        d_scale_BL,
        d_gates_PD.to(gates_PD.dtype),
        d_candidate_DD.to(candidate_DD.dtype),
    )
