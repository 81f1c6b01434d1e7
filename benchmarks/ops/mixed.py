"""Checks of the norm of mixed tokens; see ``check_gpu.py``."""

from __future__ import annotations

import torch
from harness import CUDA, DEVICE, Report, compare, same_when_replayed
from torch import Tensor

from laser.ops.mixed_norm import mixed_norm
from laser.ops.mixed_norm import naive as mixed_naive


def check_mixed(dtype: torch.dtype, M: int, D: int) -> dict:
    """Contiguous samples, then what a product per token gives; a last tile that is not full."""
    torch.manual_seed(0)
    weight, bias = torch.rand(D, device=DEVICE) + 0.5, torch.randn(D, device=DEVICE)
    names = ["normed", "d_x", "d_weight", "d_bias"]
    results: dict[str, object] = {"ok": True}
    for case, B in {"samples": 5003, "tokens": 301}.items():
        x = (5 + 3 * torch.randn(M, B, D, device=DEVICE)).to(dtype).transpose(0, 1)
        inputs = [x.contiguous() if case == "samples" else x, weight, bias]
        found = compare(lambda *x: mixed_norm(*x, 1e-5), lambda *x: mixed_naive.mixed_norm(*x, 1e-5), inputs, names)
        results |= {f"{case} {name}": value for name, value in found.items() if name != "ok"}
        results["ok"] = results["ok"] and found["ok"]
    return results


def check_large_mixed() -> dict:
    """Past 2^31 elements: the last samples equal the same samples alone, in both layouts."""
    B, M, D, few = 530_000, 16, 256, 256
    x = torch.zeros(B, M, D, device=DEVICE, dtype=torch.bfloat16)
    x[-few:].normal_()
    weights = [torch.randn(D, device=DEVICE, requires_grad=True) for _ in range(2)]
    alone = x[-few:].clone().requires_grad_()
    y_alone = mixed_norm(alone, *weights)
    d_alone = torch.autograd.grad(y_alone, alone, torch.ones_like(y_alone))[0]
    results: dict[str, object] = {"ok": True, "elements": x.numel()}
    for case in ("samples", "tokens"):
        rows = x if case == "samples" else x.transpose(0, 1).contiguous().transpose(0, 1)
        rows = rows.detach().requires_grad_()
        y = mixed_norm(rows, *weights)
        d_rows = torch.autograd.grad(y, rows, torch.ones_like(y))[0]
        results[case] = [torch.equal(y[-few:], y_alone), torch.equal(d_rows[-few:], d_alone)]
        results["ok"] = results["ok"] and all(results[case])
        del rows, y, d_rows
    return results


def check_recorded_mixed() -> dict:
    """Forward and backward replayed on other values: the bits of calls without a graph."""
    leaves = [torch.randn(1000, 16, 256, device=DEVICE, dtype=torch.bfloat16)]
    leaves += [torch.randn(256, device=DEVICE) for _ in range(2)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def step() -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            y = mixed_norm(*leaves, widens=False)
        return [y, *torch.autograd.grad(y.float().sum(1).square().sum(), leaves)]

    return same_when_replayed(step, leaves)


def correctness(report: Report) -> None:
    """Against the specification, in size and in a recording; PyTorch's own norm serves the CPU."""
    if not CUDA:
        return
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for M, D in ((2, 16), (8, 64), (16, 256), (8, 1024)):
            name = f"{str(dtype).split('.')[1]} M={M} D={D}"
            report.attempt(f"check mixed norm {name}", lambda c=(dtype, M, D): check_mixed(*c))
    report.attempt("check mixed norm past 2^31 elements", check_large_mixed)
    report.attempt("check mixed norm in a CUDA graph", check_recorded_mixed)
