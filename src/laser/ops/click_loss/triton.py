# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""Binary cross-entropy and its gradient in Triton, by one program: sums are the same in every run.

Legend of shape suffixes: B samples; I samples at a time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit(do_not_specialize=["samples", "size"])
def loss_kernel(logit_B, label_B, loss_, d_logit_B, samples, size, BLOCK_I: tl.constexpr):
    """Loss, and gradient of every logit."""
    total_I = tl.zeros((BLOCK_I,), tl.float32)
    for first in range(0, samples, BLOCK_I):
        i_I = first + tl.arange(0, BLOCK_I)
        live_I = i_I < samples
        logit_I = tl.load(logit_B + i_I, mask=live_I, other=0.0)
        label_I = tl.load(label_B + i_I, mask=live_I, other=0.0)
        small_I = tl.exp(-tl.abs(logit_I))
        loss_I = tl.maximum(logit_I, 0.0) - logit_I * label_I + tl.log(1.0 + small_I)
        total_I += tl.where(live_I, loss_I, 0.0)
        probability_I = tl.where(logit_I >= 0, 1.0, small_I) / (1.0 + small_I)
        tl.store(d_logit_B + i_I, (probability_I - label_I) / size, mask=live_I)
    tl.store(loss_, tl.sum(total_I, 0) / size)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logit_B: Tensor, label_B: Tensor, size: int) -> Tensor:
        loss, d_logit_B = logit_B.new_empty(()), torch.empty_like(logit_B)
        loss_kernel[(1,)](logit_B, label_B, loss, d_logit_B, len(logit_B), float(size), BLOCK_I=BLOCK)
        ctx.save_for_backward(d_logit_B)
        return loss

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (d_logit_B,) = ctx.saved_tensors
        return d_logit_B * d_loss, None, None


def click_loss(logit_B: Tensor, label_B: Tensor, size: int) -> Tensor:
    """See ``laser.ops.click_loss``."""
    return _Loss.apply(logit_B.contiguous(), label_B.contiguous(), size)
