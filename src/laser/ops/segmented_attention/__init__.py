"""Segmented target attention (STA): sigmoid-gated sums over segments of a packed history (arXiv 2602.11562).

The paper projects every event to keys and values. With one query a sample the projections can be moved out: keys into
the query (x W_K . q = x . W_K q), values behind the sum (sum of gate * x W_V = (sum of gate * x) W_V). What remains is
this op: score, gate, sum, on the raw events. It is the same function of the same parameters.

Three implementations: ``naive`` is the specification, ``cpu`` works in batched matrix products (any device), ``triton``
on CUDA. They are chosen by the device of ``x_TD``. ``docs/numerics.md`` says how exact they are, and why.

Legend of shape suffixes: B samples; U histories; T events, packed; E events, once per sample that sees them;
G segments, packed; H heads; D event width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from laser.ops.availability import use_triton
from laser.ops.segmented_attention import cpu
from laser.ops.segments import SegmentLayout, Sizes, Tiling, segment_layout

__all__ = ["segmented_target_attention"]


def segmented_target_attention(
    x_TD: Tensor,
    off_U1: Tensor,
    query_BHD: Tensor,
    bias_H: Tensor,
    history_of_B: Tensor,
    width: int,
    *,
    return_gates: bool = False,
    on_host: tuple[Tensor, Tensor] | None = None,
    layout: SegmentLayout | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gate every event of a sample's history by its target, and sum each segment.

    gate = sigmoid(x . query + bias), with no normalisation over the segment; pooled = sum over a segment of gate * x.
    Segments are anchored at the newest event: the last segment of a sample holds its newest ``width`` events and the
    first may be short. A sample without history has no segment. Gates, scores and sums are float32 (float64 for
    float64), also under autocast. Differentiable once in ``x_TD``, ``query_BHD`` and ``bias_H``; equal inputs give
    equal bits, forward and backward.

    Args:
        x_TD: events [T, D], each history oldest first; float32, bfloat16, float16, or float64 (not in Triton).
        off_U1: int64 [U + 1], where each history begins in ``x_TD``, and T.
        query_BHD: [B, H, D] score vectors in event space, with W_K and 1/sqrt(d_q) absorbed.
        bias_H: [H], added to every score.
        history_of_B: int64 [B], the history of each sample; many samples may share one.
        width: events a segment, at least 1.
        return_gates: also return the gates, for analysis: no gradient flows through them.
        on_host: copies of ``off_U1`` and ``history_of_B`` in host memory. Without them a GPU's are fetched, for which
            the host must wait.
        layout: of these histories and samples, where it is known already. It may have more segments than the samples:
            they come last, and are 0.

    Returns:
        pooled_GHD [G, H, D] in the dtype of ``x_TD`` (G = sum over samples of ceil(length / width), a sample's segments
        oldest first) and seg_off_B1, int64 [B + 1]; with ``return_gates`` also gate_EH [E, H] (E = sum over samples of
        length, oldest first) and event_off_B1, int64 [B + 1].

    Raises:
        ValueError: when shapes or dtypes do not fit each other.
    """
    check(x_TD, off_U1, query_BHD, bias_H, history_of_B, width)
    if layout is None:
        layout = lay_out(x_TD, query_BHD, *(on_host or (off_U1, history_of_B)), width)
    pooled_GHD, gate_EH = attend(x_TD, query_BHD, bias_H, layout, return_gates=return_gates)
    parts = layout.parts
    if return_gates:
        return pooled_GHD, parts.seg_off_B1, gate_EH.detach(), parts.event_off_B1
    return pooled_GHD, parts.seg_off_B1


def lay_out(x_TD: Tensor, query_BHD: Tensor, off_U1: Tensor, history_of_B: Tensor, width: int) -> SegmentLayout:
    """The layout with the tiles of the implementation that serves ``x_TD``."""
    return segment_layout(off_U1, history_of_B, width, tiling(x_TD, query_BHD, width), x_TD.device)


def tiling(x_TD: Tensor, query_BHD: Tensor, width: int) -> Callable[[bool], Tiling]:
    """Gives the tiles of the implementation that serves ``x_TD``, told whether any history has several samples."""
    return partial(_implementation(x_TD).tiling, x_TD.dtype, *query_BHD.shape[1:], width)


def attend(
    x_TD: Tensor, query_BHD: Tensor, bias_H: Tensor, layout: SegmentLayout, *, return_gates: bool = False
) -> tuple[Tensor, Tensor]:
    """The op on a layout that is already known: pooled_GHD, and gate_EH, which may be empty unless asked for."""
    # The CPU's backward reads the gates; Triton's computes them again.
    return _forward(
        x_TD, query_BHD, bias_H, return_gates or not use_triton(x_TD), layout.index_I, layout.lengths, layout.sizes
    )


def check(x_TD: Tensor, off_U1: Tensor, query_BHD: Tensor, bias_H: Tensor, history_of_B: Tensor, width: int) -> None:
    """Raise ValueError unless shapes and dtypes fit; reads no values, so it never waits for the device."""
    if x_TD.dim() != 2 or query_BHD.dim() != 3 or x_TD.shape[1] != query_BHD.shape[2]:
        raise ValueError(
            f"x_TD is {list(x_TD.shape)} and query_BHD is {list(query_BHD.shape)}; expected [T, D] and [B, H, D] with "
            "one D: absorb the key projection into the query"
        )
    B, H, _ = query_BHD.shape
    if list(bias_H.shape) != [H] or list(history_of_B.shape) != [B] or off_U1.dim() != 1 or len(off_U1) == 0:
        raise ValueError(
            f"bias_H is {list(bias_H.shape)}, history_of_B is {list(history_of_B.shape)} and off_U1 is "
            f"{list(off_U1.shape)}; query_BHD is {list(query_BHD.shape)}, so pass [{H}], [{B}] and [U + 1]"
        )
    if off_U1.dtype != torch.int64 or history_of_B.dtype != torch.int64:
        raise ValueError(f"off_U1 is {off_U1.dtype} and history_of_B is {history_of_B.dtype}; pass both as torch.int64")
    if width < 1:
        raise ValueError(f"segment width is {width}; pass at least 1")


@torch.library.custom_op("laser::segmented_attention", mutates_args=())
def _forward(
    x_TD: Tensor,
    query_BHD: Tensor,
    bias_H: Tensor,
    keep_gates: bool,
    index_I: Tensor,
    lengths: Sequence[int],
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    layout = SegmentLayout(index_I, lengths, sizes)
    inputs = (x_TD.contiguous(), query_BHD.contiguous(), bias_H.contiguous())
    with torch.autocast(x_TD.device.type, enabled=False):
        return _implementation(x_TD).forward(*inputs, layout, keep_gates=keep_gates)


@torch.library.custom_op("laser::segmented_attention_backward", mutates_args=())
def _backward(
    d_pooled_GHD: Tensor,
    x_TD: Tensor,
    query_BHD: Tensor,
    bias_H: Tensor,
    gate_EH: Tensor,
    index_I: Tensor,
    lengths: Sequence[int],
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    layout = SegmentLayout(index_I, lengths, sizes)
    inputs = (d_pooled_GHD.contiguous(), x_TD.contiguous(), query_BHD.contiguous(), bias_H.contiguous(), gate_EH)
    with torch.autocast(x_TD.device.type, enabled=False):
        return _implementation(x_TD).backward(*inputs, layout)


def _implementation(x_TD: Tensor) -> Any:
    if not use_triton(x_TD):
        return cpu
    from laser.ops.segmented_attention import triton

    return triton


@_forward.register_fake
def _(x_TD, query_BHD, bias_H, keep_gates, index_I, lengths, sizes):
    H, D = query_BHD.shape[1:]
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    size = Sizes(*sizes)
    num_gates = size.num_events if keep_gates else 0
    return x_TD.new_empty(size.num_segments, H, D), x_TD.new_empty(num_gates, H, dtype=wide)


@_backward.register_fake
def _(d_pooled_GHD, x_TD, query_BHD, bias_H, gate_EH, *layout):
    bias_like = gate_EH.new_empty(gate_EH.shape[1])
    return torch.empty_like(x_TD), torch.empty_like(query_BHD), bias_like


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_TD, query_BHD, bias_H, _, index_I, ctx.lengths, ctx.sizes = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x_TD, query_BHD, bias_H, output[1], index_I)


def _gradients(ctx: Any, d_pooled_GHD: Tensor | None, _d_gate: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_pooled_GHD is None:
        return (None,) * 7
    d_x_TD, d_query_BHD, d_bias_H = _backward(d_pooled_GHD, *ctx.saved_tensors, ctx.lengths, ctx.sizes)
    return d_x_TD, d_query_BHD, d_bias_H.to(ctx.saved_tensors[2].dtype), None, None, None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)
