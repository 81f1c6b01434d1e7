"""Which implementation of every op works on this machine, found out by running a tiny case of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from laser.ops.availability import has_triton
from laser.ops.segment_readout import naive as readout_naive
from laser.ops.segment_readout import segment_readout
from laser.ops.segmented_attention import naive as segmented_naive
from laser.ops.segmented_attention import segmented_target_attention
from laser.ops.target_attention import naive as target_naive
from laser.ops.target_attention import segment_softmax_attention


@dataclass(frozen=True)
class KernelFamily:
    """One op on one device.

    ``implementation`` is the one that serves the device: ``cpu`` (batched PyTorch, on any device) or ``triton``.
    ``works``: forward and backward ran and agree with the specification; otherwise ``detail`` says what went wrong.
    """

    op: str
    device: str
    implementation: str
    works: bool
    detail: str


def kernel_families() -> list[KernelFamily]:
    """Try every op on the CPU and, where there is one, on the GPU."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [_try(op, fast, naive, device) for device in devices for op, (fast, naive) in _CASES.items()]


def _try(op: str, fast: Callable[..., Tensor], naive: Callable[..., Tensor], device: str) -> KernelFamily:
    implementation = "triton" if device == "cuda" and has_triton() else "cpu"
    try:
        answers = [_run(case, device) for case in (fast, naive)]
    except Exception as error:  # the doctor reports whatever a driver, compiler or kernel may raise
        first_line = (str(error).splitlines() or [""])[0]
        return KernelFamily(op, device, implementation, False, f"{type(error).__name__}: {first_line}")
    difference = max(float((a - b).abs().max()) for a, b in zip(*answers, strict=True))
    works = difference < 1e-4
    detail = f"largest difference from the specification {difference:.1e}"
    return KernelFamily(op, device, implementation, works, detail)


def _run(case: Callable[..., Tensor], device: str) -> tuple[Tensor, Tensor]:
    """Output and gradient of a case: 7 rows of width 8 in a history of 5, an empty one and one of 2."""
    rows_TD = torch.linspace(-1, 1, 7 * 8).reshape(7, 8).sin().to(device).requires_grad_()
    off_U1 = torch.tensor([0, 5, 5, 7], device=device)
    query_BHD = torch.linspace(-2, 2, 3 * 2 * 8).reshape(3, 2, 8).to(device)
    output = case(rows_TD, off_U1, query_BHD)
    return output.detach(), torch.autograd.grad(output.square().sum(), rows_TD)[0]


def _segmented(op: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    def case(x_TD: Tensor, off_U1: Tensor, query_BHD: Tensor) -> Tensor:
        bias_H, history_of_B = query_BHD.new_zeros(2), torch.arange(3, device=x_TD.device)
        return op(x_TD, off_U1, query_BHD, bias_H, history_of_B, 3)[0]

    return case


def _target(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda seg_GD, seg_off_B1, query_BHD: op(query_BHD, seg_GD, seg_off_B1)


def _readout(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    def case(seg_GD: Tensor, seg_off_B1: Tensor, _query_BHD: Tensor) -> Tensor:
        max_BD, newest_BRD = op(seg_GD, seg_off_B1, 2)
        return torch.cat([max_BD[:, None], newest_BRD], 1)

    return case


_CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "segmented_attention": (
        _segmented(segmented_target_attention),
        _segmented(segmented_naive.segmented_target_attention),
    ),
    "target_attention": (
        _target(segment_softmax_attention),
        _target(target_naive.segment_softmax_attention),
    ),
    "segment_readout": (_readout(segment_readout), _readout(readout_naive.segment_readout)),
}
