"""Which implementation of every op works on this machine, found out by running a tiny case of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from laser.ops import linear
from laser.ops.availability import has_triton
from laser.ops.gated_recurrence import gated_recurrence
from laser.ops.gated_recurrence import naive as recurrence_naive
from laser.ops.gather_sum import gather_sum
from laser.ops.gather_sum import naive as gather_naive
from laser.ops.keep_factor import keep_factor
from laser.ops.keep_factor import naive as keep_naive
from laser.ops.linear import naive as linear_naive
from laser.ops.mixed_norm import mixed_norm
from laser.ops.mixed_norm import naive as mixed_naive
from laser.ops.newest_mean import naive as newest_naive
from laser.ops.newest_mean import newest_mean
from laser.ops.residual_norm import naive as residual_naive
from laser.ops.residual_norm import residual_norm
from laser.ops.segment_readout import naive as readout_naive
from laser.ops.segment_readout import segment_readout
from laser.ops.segmented_attention import naive as segmented_naive
from laser.ops.segmented_attention import segmented_target_attention
from laser.ops.target_attention import naive as target_naive
from laser.ops.target_attention import segment_softmax_attention


def kernel_families() -> dict[str, Callable[[], str]]:
    """A check of every op on the CPU and, where there is one, on the GPU, by name.

    A check runs the op forward and backward and returns what was seen in a few words. It raises AssertionError when
    the answer differs from the specification, and whatever the driver, compiler or kernel raised when it does not run.
    """
    checks: dict[str, Callable[[], str]] = {}
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        implementation = "Triton" if device == "cuda" and has_triton() else "PyTorch"
        for op in _CASES:
            checks[f"{op} ({implementation}, {device})"] = partial(_compare, op, device)
    return checks


def _compare(op: str, device: str) -> str:
    answers = [_run(case, device) for case in _CASES[op]]
    difference = max(float((fast - naive).abs().max()) for fast, naive in zip(*answers, strict=True))
    assert difference < 1e-4, f"{op} on {device} differs from the specification by {difference:.1e}"
    return f"forward and backward within {difference:.1e} of the specification"


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


def _newest(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    return lambda x_TD, off_U1, _query_BHD: torch.cat(op(x_TD, off_U1, 3))


def _keep(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def case(rows_TD: Tensor, _off_U1: Tensor, _query_BHD: Tensor) -> Tensor:
        key_T, width = torch.arange(len(rows_TD), device=rows_TD.device), rows_TD.shape[1]
        return (
            rows_TD * op(0.5, 1, 2, key_T, width, rows_TD.dtype) * op(0.1, 1, 2, key_T, key_T, rows_TD.dtype)[:, None]
        )

    return case


def _gather(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def case(rows_RD: Tensor, off_U1: Tensor, _query_BHD: Tensor) -> Tensor:
        index_TS = torch.stack([off_U1, off_U1.flip(0)], 1).clamp(max=len(rows_RD) - 1).int()
        return op(rows_RD, index_TS, None, None)

    return case


def _residual(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def case(a_ND: Tensor, _off_U1: Tensor, query_BHD: Tensor) -> Tensor:
        weight_D, bias_D = query_BHD[0] / 8
        # Neighbours in a row of a differ little; b gives the sum a spread.
        return op(a_ND, (9 * a_ND).cos(), weight_D, bias_D, 1e-5)

    return case


def _mixed(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def case(x_ND: Tensor, _off_U1: Tensor, query_BHD: Tensor) -> Tensor:
        weight_D, bias_D = query_BHD[0, :, :4] / 8
        return op((9 * x_ND).cos().view(7, 2, 4), weight_D, bias_D, 1e-5)

    return case


def _recurrence(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def case(x_ND: Tensor, _off_U1: Tensor, query_BHD: Tensor) -> Tensor:
        products_BLP = torch.cat([x_ND, x_ND * 2, x_ND.cos()], 1).view(1, 7, 24)
        weight = query_BHD.flatten()
        return op(
            products_BLP,
            x_ND[None, :, 0].sigmoid(),
            weight.repeat(3)[:128].view(16, 8),
            weight.repeat(2)[:64].view(8, 8),
        )

    return case


def _linear(package: Any) -> Callable[..., Tensor]:
    def case(x_ND: Tensor, _off_U1: Tensor, query_BHD: Tensor) -> Tensor:
        # Biases made of the rows, so that their gradients are seen.
        x_NHI, bias_HO = x_ND.view(-1, 2, 4), x_ND[:2, :6]
        weight = query_BHD / 8
        weight_HIO = weight.view(2, 4, 6)
        y_NHO = package.grouped_linear(x_NHI, weight_HIO, bias_HO)
        parts = [package.linear(y_NHO.flatten(1), weight.view(4, 12), x_ND[0, :4]), x_ND[:, 4:]]
        joined_NO = package.side_by_side([parts, [x_ND]], weight[:2], x_ND[:2, :2])
        return joined_NO + package.grouped_linear(x_NHI, weight_HIO, None).flatten(1)[:, :4]

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
    "gated_recurrence": (_recurrence(gated_recurrence), _recurrence(recurrence_naive.gated_recurrence)),
    "gather_sum": (_gather(gather_sum), _gather(gather_naive.gather_sum)),
    "keep_factor": (_keep(keep_factor), _keep(keep_naive.keep_factor)),
    "mixed_norm": (_mixed(mixed_norm), _mixed(mixed_naive.mixed_norm)),
    "newest_mean": (_newest(newest_mean), _newest(newest_naive.newest_mean)),
    "segment_readout": (_readout(segment_readout), _readout(readout_naive.segment_readout)),
    "linear": (_linear(linear), _linear(linear_naive)),
    "residual_norm": (_residual(residual_norm), _residual(residual_naive.residual_norm)),
}
