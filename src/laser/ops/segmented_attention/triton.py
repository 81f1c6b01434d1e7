"""Segmented target attention in Triton: x is read once, nothing of size [T, H, D] exists, and there are no atomics.

Two pairs of kernels: ``one_sample`` where every history has at most one sample, as in training on single impressions,
and ``shared`` where candidates share histories. A program takes neighbouring segments of one history, and computes
gates again in its backward pass instead of reading them. It leaves a partial sum of dquery and
dbias for each of its samples, and another kernel adds these up in order: equal inputs give equal bits.

Row numbers are int64: a row times D may pass 2^31. Offsets inside one history fit int32.

Legend of shape suffixes: B samples; U histories; T events, packed; E events, once per sample that sees them;
G segments, packed; P (sample, backward program) pairs; H heads; D width; R a sample's H times D values.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from laser.ops.products import halves
from laser.ops.segmented_attention import one_sample
from laser.ops.segmented_attention import shared as many_samples
from laser.ops.segments import SegmentLayout, Tiling
from laser.ops.spare_rows import zero_spare_rows

ROW_ELEMENTS = 256
"""Elements of x that the 32 lanes of a warp read at once, 16 bytes each in half precision."""
GROUPS = 4
"""Groups of segments that a program takes, one after another."""
TILE_EVENTS = 128
"""Events of a program whose history may be shared, where a segment has fewer."""
SUM_ELEMENTS = 256
"""Values of a sample's partial sums that a program adds up."""
STEP_ELEMENTS = 8192
"""Elements of x that a program holds while the samples of a shared history pass."""


@triton.jit
def reduce_kernel(
    d_query_PR,
    d_bias_PH,
    pair_off_B1,
    d_query_BR,
    d_bias_BH,
    H: tl.constexpr,
    R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Add up the partial sums of one sample, in the order of its tiles; a program takes BLOCK_R of a row's R values."""
    sample = tl.program_id(0).to(tl.int64)
    first = tl.load(pair_off_B1 + sample)
    last = tl.load(pair_off_B1 + sample + 1)
    p_P = tl.arange(0, BLOCK_P)
    r_R = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    h_H = tl.arange(0, BLOCK_H)
    in_R = r_R < R
    in_H = (h_H < H) & (tl.program_id(1) == 0)
    query_PR = tl.zeros((BLOCK_P, BLOCK_R), tl.float32)
    bias_PH = tl.zeros((BLOCK_P, BLOCK_H), tl.float32)
    for pair in range(first, last, BLOCK_P):
        live_P1 = (pair + p_P < last)[:, None]
        row_P1 = (pair + p_P)[:, None]
        query_PR += tl.load(d_query_PR + row_P1 * R + r_R[None, :], mask=live_P1 & in_R[None, :], other=0.0)
        bias_PH += tl.load(d_bias_PH + row_P1 * H + h_H[None, :], mask=live_P1 & in_H[None, :], other=0.0)
    query_R = tl.sum(query_PR, axis=0)
    tl.store(d_query_BR + sample * R + r_R, query_R.to(d_query_BR.dtype.element_ty), mask=in_R)
    tl.store(d_bias_BH + sample * H + h_H, tl.sum(bias_PH, axis=0), mask=in_H)


def one_sample_config(dtype: torch.dtype, H: int, D: int, width: int, backward: bool) -> dict[str, int]:
    """Tile and launch of the kernels for histories with one sample.

    Chosen by shape and never by timing: another tile is another order of summation, and so other bits.
    """
    block_d = max(16, int(triton.next_power_of_2(D)))
    warps = 1 if H * block_d <= ROW_ELEMENTS else 4
    config = {"BLOCK_D": block_d, "BLOCK_S": max(1, ROW_ELEMENTS // block_d), "GROUPS": GROUPS, "num_warps": warps}
    if not backward:
        return config | {"STEP": min(2, width), "STAGES": 3}
    # Fewer registers than the compiler would take leave room for more programs.
    step = (
        {"STEP": 1, "STAGES": 5, "maxnreg": 80}
        if dtype == torch.float32
        else {"STEP": min(2, width), "STAGES": 3, "maxnreg": 88}
    )
    if warps > 1:
        del step["maxnreg"]
    return config | step


def shared_config(H: int, D: int, width: int, split: bool) -> dict[str, int]:
    """Tile and launch of the forward kernel for shared histories."""
    block_d = max(16, int(triton.next_power_of_2(D)))
    rows = max(16, int(triton.next_power_of_2(H)))
    segments = max(1, min(rows // H, TILE_EVENTS // width))
    warps = 4 if D > 128 else 1 if split else 2
    return {
        "BLOCK_D": block_d, "BLOCK_S": segments, "BLOCK_R": rows, "BLOCK_E": 16, "STAGES": 4 if split else 3,
        "num_warps": warps,
    }  # fmt: skip


def shared_backward_config(H: int, D: int, width: int, split: bool) -> dict[str, int]:
    """Tile and launch of the backward kernel for shared histories."""
    config = shared_config(H, D, width, split)
    most = max(16, min(64, STEP_ELEMENTS // config["BLOCK_D"]))
    segments = max(1, min(config["BLOCK_S"], most // width))
    events = max(16, min(most, int(triton.next_power_of_2(segments * width))))
    steps = -(-segments * width // events)
    config |= {"BLOCK_S": segments, "BLOCK_E": events, "STEPS": steps, "num_warps": 4}
    del config["STAGES"]
    if split and D <= 128:
        config["maxnreg"] = 168  # leaves room for more programs than the registers that the compiler would take
    return config


def tiling(dtype: torch.dtype, H: int, D: int, width: int, shared: bool) -> Tiling:
    """Tiles that the kernels expect of a layout."""
    if shared:
        forward, backward = (config(H, D, width, halves(dtype)) for config in (shared_config, shared_backward_config))
        return Tiling(forward["BLOCK_S"] * width, backward["BLOCK_S"] * width, backward["STEPS"], shared)
    forward, backward = (one_sample_config(dtype, H, D, width, backward) for backward in (False, True))
    return Tiling(*(config["BLOCK_S"] * config["GROUPS"] * width for config in (forward, backward)), shared=shared)


def forward(
    x_TD: Tensor, query_BHD: Tensor, bias_H: Tensor, layout: SegmentLayout, *, keep_gates: bool = True
) -> tuple[Tensor, Tensor]:
    """Pooled segments [G, H, D] in the dtype of x, and float32 gates [E, H] if asked for; inputs contiguous."""
    H, D = query_BHD.shape[1:]
    parts, size = layout.parts, layout.size
    if shared := size.most_samples > 1:
        split = halves(x_TD.dtype)
        config = shared_config(H, D, size.width, split)
        one_step = config["BLOCK_S"] * size.width <= config["BLOCK_E"]
        config |= {"ONE_STEP": one_step, "SPLIT": split}
    else:
        config = one_sample_config(x_TD.dtype, H, D, size.width, backward=False)
    pooled_GHD = x_TD.new_empty(size.num_segments, H, D)
    if size.spare:  # rows that belong to no sample are read by what comes next
        zero_spare_rows(pooled_GHD, parts.seg_off_B1)
    gate_EH = x_TD.new_empty(size.num_events if keep_gates else 0, H, dtype=torch.float32)
    if size.num_segments:
        kernel: Any = (many_samples if shared else one_sample).forward_kernel
        launch = kernel[(len(parts.forward_history_of_N),)]
        launch(
            x_TD,
            query_BHD,
            bias_H,
            parts.off_U1,
            parts.seg_off_B1,
            parts.event_off_B1,
            parts.order_B,
            parts.sample_off_U1,
            parts.forward_tile_off_U1,
            parts.forward_history_of_N,
            pooled_GHD,
            gate_EH,
            size.width,
            H=H,
            D=D,
            KEEP_GATES=keep_gates,
            **config,
        )
    return pooled_GHD, gate_EH


def backward(
    d_pooled_GHD: Tensor, x_TD: Tensor, query_BHD: Tensor, bias_H: Tensor, gate_EH: Tensor, layout: SegmentLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [T, D], query [B, H, D] (each in its dtype) and bias [H] (float32); inputs contiguous.

    ``gate_EH`` is not read: computing gates again costs less than memory does.
    """
    B, H, D = query_BHD.shape
    parts, size = layout.parts, layout.size
    if shared := size.most_samples > 1:
        split = halves(x_TD.dtype)
        config = shared_backward_config(H, D, size.width, split) | {"SPLIT": split}
    else:
        config = one_sample_config(x_TD.dtype, H, D, size.width, backward=True)
    d_x_TD, d_query_BHD = torch.empty_like(x_TD), torch.empty_like(query_BHD)
    d_query_PHD = x_TD.new_empty(size.num_pairs, H, D, dtype=torch.float32)
    d_bias_PH = x_TD.new_empty(size.num_pairs, H, dtype=torch.float32)
    d_bias_BH = x_TD.new_empty(B, H, dtype=torch.float32)
    if num_tiles := len(parts.backward_history_of_M):
        kernel: Any = (many_samples if shared else one_sample).backward_kernel
        launch = kernel[(num_tiles * config.get("STEPS", 1),)]
        launch(
            x_TD,
            query_BHD,
            bias_H,
            d_pooled_GHD,
            parts.off_U1,
            parts.seg_off_B1,
            parts.order_B,
            parts.sample_off_U1,
            parts.backward_tile_off_U1,
            parts.backward_history_of_M,
            parts.pair_off_B1,
            d_x_TD,
            d_query_PHD,
            d_bias_PH,
            size.width,
            H=H,
            D=D,
            **config,
        )
    if B:
        launch: Any = reduce_kernel[(B, triton.cdiv(H * D, SUM_ELEMENTS))]
        launch(
            d_query_PHD,
            d_bias_PH,
            parts.pair_off_B1,
            d_query_BHD,
            d_bias_BH,
            H=H,
            R=H * D,
            BLOCK_H=triton.next_power_of_2(H),
            BLOCK_R=min(SUM_ELEMENTS, triton.next_power_of_2(H * D)),
            BLOCK_P=16,
            num_warps=4,
        )
    return d_x_TD, d_query_BHD, d_bias_BH.sum(0)
