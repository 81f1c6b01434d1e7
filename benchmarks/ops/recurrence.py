"""The gated recurrence of DIEN on a GPU: against its specification, and beside the loop that it was."""

from __future__ import annotations

import torch
from harness import CASES, CUDA, DEVICE, Report, compare, timed

from laser.ops.gated_recurrence import gated_recurrence, naive


def check_recurrence(dtype: torch.dtype, D: int) -> dict:
    B, L = 33, 17
    torch.manual_seed(0)
    scale = torch.rand(B, L, device=DEVICE)
    scale[:, : L // 3] = 0
    shapes = (B, L, 3 * D), (2 * D, D), (D, D)
    products, gates, candidate = (torch.randn(*shape, device=DEVICE) / shape[-1] ** 0.5 for shape in shapes)
    inputs = [tensor.to(dtype) for tensor in (products, scale, gates, candidate)]
    names = ["states", "d_products", "d_scale", "d_gates_weight", "d_candidate_weight"]
    return compare(gated_recurrence, naive.gated_recurrence, inputs, names)


def correctness(report: Report) -> None:
    for dtype, D, H, _ in CASES:
        name = f"{str(dtype).split('.')[1]} D={D} H={H}"
        report.attempt(f"check recurrence {name}", lambda c=(dtype, D): check_recurrence(*c))


def measure(report: Report) -> None:
    """What DIEN does twice a step: 1024 samples of 100 events."""
    B, L, D = (1024, 100, 128) if CUDA else (32, 20, 16)
    dtype = torch.bfloat16 if CUDA else torch.float32
    shapes = (B, L, 3 * D), (B, L), (2 * D, D), (D, D)
    inputs = [(torch.randn(*shape, device=DEVICE) / D**0.5).to(dtype).requires_grad_() for shape in shapes]
    upstream = torch.randn(B, L, D, device=DEVICE).to(dtype)
    for name, op in (("op", gated_recurrence), ("naive", naive.gated_recurrence)):
        report.attempt(f"recurrence, {name}, forward", lambda op=op: timed(lambda: torch.no_grad()(op)(*inputs)))
        report.attempt(
            f"recurrence, {name}, forward + backward",
            lambda op=op: timed(lambda: torch.autograd.grad(op(*inputs), inputs, upstream)),
        )
