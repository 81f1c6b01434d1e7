"""Target attention over packed segments: one softmax a sample and head, in which a segment is its own key and value.

Key, value and output projections are the caller's, moved out of the sum as in segmented attention: the key projection
into the query, the value projection behind the weighted mean (for one query the function is the same, and no key or
value of a segment exists).

Three implementations, chosen by the device of ``seg_GD``: ``naive`` is the specification, ``cpu`` works in batched
matrix products (any device), ``triton`` on CUDA.

Legend of shape suffixes: B samples; G segments, packed; H heads; D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from laser.ops.availability import use_triton
from laser.ops.target_attention import cpu

__all__ = ["joined_attention", "segment_softmax_attention"]


def segment_softmax_attention(query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor) -> Tensor:
    """Softmax-weighted mean of each sample's segments.

    pooled = sum over the sample's segments of softmax(seg . query) * seg; 0 for a sample without segments. Scores,
    weights and sums are float32 (float64 for float64), also under autocast. Differentiable once in ``query_BHD`` and
    ``seg_GD``; equal inputs give equal bits, forward and backward.

    Args:
        query_BHD: [B, H, D] score vectors in segment space, with W_K and 1/sqrt(d_head) absorbed.
        seg_GD: [G, D] segments, packed by sample; float32, bfloat16, float16, or float64 (not in Triton).
        seg_off_B1: int64 [B + 1], where each sample's segments begin, and their number. Segments behind it belong to
            no sample; their gradient is 0.

    Returns:
        pooled_BHD, [B, H, D] in the dtype of ``seg_GD``.

    Raises:
        ValueError: when shapes or dtypes do not fit each other.
    """
    _check(query_BHD, seg_GD, seg_off_B1)
    return _forward(query_BHD, seg_GD, seg_off_B1)[0].to(seg_GD.dtype)


def joined_attention(
    query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor, *, in_place: bool = False
) -> tuple[Tensor, Tensor]:
    """The same, and the segments for all other uses, such as the next layer's: where those are used, the kernel adds
    its gradient to theirs, and PyTorch has no two gradients of size [G, D] to add up.

    Args:
        query_BHD: as ``segment_softmax_attention`` takes them, which this is off CUDA and wherever a program is traced.
        seg_GD: likewise.
        seg_off_B1: likewise.
        in_place: Triton adds to the gradient that comes in, instead of to a copy of it. A promise that nothing else
            holds that gradient, such as a hook, or an op that hands on its own gradient as that of two inputs.

    Returns:
        pooled_BHD, and seg_GD (in Triton a view, not to be changed in place).

    Raises:
        ValueError: when shapes or dtypes do not fit each other.
    """
    if torch.compiler.is_compiling() or not use_triton(seg_GD):
        return segment_softmax_attention(query_BHD, seg_GD, seg_off_B1), seg_GD
    _check(query_BHD, seg_GD, seg_off_B1)
    return JoinedAttention.apply(query_BHD, seg_GD, seg_off_B1, in_place)  # type: ignore[return-value]


class JoinedAttention(torch.autograd.Function):
    """``joined_attention`` in Triton. A custom op could not return its input, so it is none."""

    @staticmethod
    def forward(
        ctx: Any, query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor, in_place: bool
    ) -> tuple[Tensor, Tensor]:
        """Pooled segments, and a view of the segments."""
        from laser.ops.target_attention import triton

        inputs = (query_BHD.contiguous(), seg_GD.contiguous(), seg_off_B1.contiguous())
        pooled_BHD, lse_BH = triton.forward(*inputs)
        ctx.save_for_backward(*inputs, pooled_BHD, lse_BH)
        ctx.in_place = in_place
        # An output that nobody used has the gradient None, not a tensor of zeros.
        ctx.set_materialize_grads(False)
        return pooled_BHD.to(seg_GD.dtype), seg_GD.view_as(seg_GD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_pooled_BHD: Tensor | None, d_seg_GD: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of query and segments."""
        from laser.ops.target_attention import triton

        if d_pooled_BHD is None:
            return None, d_seg_GD, None, None
        if d_seg_GD is not None and not (ctx.in_place and d_seg_GD.is_contiguous()):
            d_seg_GD = d_seg_GD.clone(memory_format=torch.contiguous_format)
        found = triton.backward(d_pooled_BHD.contiguous(), *ctx.saved_tensors, add_to_GD=d_seg_GD)
        return *found, None, None


def _check(query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor) -> None:
    if query_BHD.dim() != 3 or seg_GD.dim() != 2 or query_BHD.shape[2] != seg_GD.shape[1]:
        raise ValueError(
            f"query_BHD is {list(query_BHD.shape)} and seg_GD is {list(seg_GD.shape)}; expected [B, H, D] and [G, D] "
            "with one D: absorb the key projection into the query"
        )
    if seg_off_B1.dtype != torch.int64 or list(seg_off_B1.shape) != [len(query_BHD) + 1]:
        raise ValueError(
            f"seg_off_B1 is {seg_off_B1.dtype} {list(seg_off_B1.shape)}; pass torch.int64 [{len(query_BHD) + 1}], one "
            "more than the samples of query_BHD"
        )


@torch.library.custom_op("laser::target_attention", mutates_args=())
def _forward(query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor) -> tuple[Tensor, Tensor]:
    inputs = (query_BHD.contiguous(), seg_GD.contiguous(), seg_off_B1.contiguous())
    with torch.autocast(seg_GD.device.type, enabled=False):
        return _implementation(seg_GD).forward(*inputs)


@torch.library.custom_op("laser::target_attention_backward", mutates_args=())
def _backward(
    d_pooled_BHD: Tensor, query_BHD: Tensor, seg_GD: Tensor, seg_off_B1: Tensor, pooled_BHD: Tensor, lse_BH: Tensor
) -> tuple[Tensor, Tensor]:
    inputs = (d_pooled_BHD, query_BHD, seg_GD, seg_off_B1, pooled_BHD, lse_BH)
    with torch.autocast(seg_GD.device.type, enabled=False):
        return _implementation(seg_GD).backward(*(tensor.contiguous() for tensor in inputs))


def _implementation(seg_GD: Tensor) -> Any:
    if not use_triton(seg_GD):
        return cpu
    from laser.ops.target_attention import triton

    return triton


@_forward.register_fake
def _(query_BHD, seg_GD, seg_off_B1):
    wide = torch.promote_types(seg_GD.dtype, torch.float32)
    return query_BHD.new_empty(query_BHD.shape, dtype=wide), query_BHD.new_empty(query_BHD.shape[:2], dtype=wide)


@_backward.register_fake
def _(d_pooled_BHD, query_BHD, seg_GD, seg_off_B1, pooled_BHD, lse_BH):
    return torch.empty_like(query_BHD), torch.empty_like(seg_GD)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    # The mean is saved before it is rounded to the dtype of seg: d_score is a difference in which its error would grow.
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, d_pooled_BHD: Tensor | None, _d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_pooled_BHD is None:
        return None, None, None
    return *_backward(d_pooled_BHD, *ctx.saved_tensors), None


_forward.register_autograd(_gradients, setup_context=_setup_context)
