"""Linear layers as autograd functions over PyTorch's products and kernels for biases; see the package.

All take and give one dtype.

Legend of shape suffixes: N rows; H groups; I inputs; O outputs; R neighbouring layers of equal sizes.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

FEW_TILES, TILE, MOST_GROUPS = 32, 64, 8
"""A batched product of so few tiles leaves most of a GPU idle, whatever the number of rows. The plain product has the
tiles of all pairs of groups, of which those of a group with itself are taken: as many times the work as groups."""


def _rows(x_NI: Tensor) -> Tensor:
    """As a matrix, also where there is nothing in it."""
    return x_NI.reshape(math.prod(x_NI.shape[:-1]), x_NI.shape[-1])


def column_sum(x_HNO: Tensor) -> Tensor:
    """Sum over rows, [H, O]."""
    from laser.ops.linear import triton

    return triton.column_sum(x_HNO)


def repeated(bias_HO: Tensor, N: int) -> Tensor:
    """Each bias N times, contiguous [H, N, O]."""
    from laser.ops.linear import triton

    return triton.repeated(bias_HO, N)


class Linear(torch.autograd.Function):
    """PyTorch's layer with our gradient of the bias; arguments as ``linear``."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """[..., O]."""
        ctx.save_for_backward(x_NI, weight_OI)
        return functional.linear(x_NI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_NO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of what needs one, in its dtype; that of the weight is contiguous."""
        x_NI, weight_OI = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        d_y_RO = _rows(d_y_NO)
        return (
            (d_y_RO @ weight_OI).view(x_NI.shape) if of_x else None,
            d_y_RO.t() @ _rows(x_NI) if of_weight else None,
            column_sum(d_y_RO[None])[0] if of_bias else None,
        )


class GroupedLinear(torch.autograd.Function):
    """A layer per group; arguments as ``grouped_linear``."""

    @staticmethod
    def forward(ctx: Any, x_NHI: Tensor, weight_HIO: Tensor, bias_HO: Tensor | None) -> Tensor:
        """[N, H, O]."""
        ctx.save_for_backward(x_NHI, weight_HIO)
        if bias_HO is not None:
            y_HNO = repeated(bias_HO, x_NHI.shape[0])
            return y_HNO.baddbmm_(x_NHI.transpose(0, 1), weight_HIO).transpose(0, 1)
        y_NHO = x_NHI.new_empty(*x_NHI.shape[:2], weight_HIO.shape[2])
        torch.bmm(x_NHI.transpose(0, 1), weight_HIO, out=y_NHO.transpose(0, 1))
        return y_NHO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_NHO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of what needs one, in its dtype, and with its strides unless it overlaps."""
        x_NHI, weight_HIO = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        d_x_NHI = None
        if of_x:
            d_x_NHI = torch.empty_like(x_NHI)
            torch.bmm(d_y_NHO.transpose(0, 1), weight_HIO.transpose(1, 2), out=d_x_NHI.transpose(0, 1))
        return (
            d_x_NHI,
            weight_gradient(x_NHI, d_y_NHO, weight_HIO) if of_weight else None,
            column_sum(d_y_NHO.transpose(0, 1)) if of_bias else None,
        )


def weight_gradient(x_NHI: Tensor, d_y_NHO: Tensor, weight_HIO: Tensor) -> Tensor:
    """x_h^T d_y_h for each group, with the strides of the weight."""
    H, I, O = weight_HIO.shape
    d_weight_HIO = torch.empty_like(weight_HIO)
    tiles = H * -(-I // TILE) * -(-O // TILE)
    if H <= MOST_GROUPS and tiles <= FEW_TILES:
        pairs_HIHO = (x_NHI.flatten(1).t() @ d_y_NHO.flatten(1)).view(H, I, H, O)
        return d_weight_HIO.copy_(pairs_HIHO.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
    return torch.bmm(x_NHI.permute(1, 2, 0), d_y_NHO.transpose(0, 1), out=d_weight_HIO)


class SideBySide(torch.autograd.Function):
    """Layers side by side, of inputs side by side; neighbours of equal sizes are one batched product."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, *weights_biases: Tensor) -> Tensor:
        """[N, sum of O]; arguments are the weights [O, I] of all layers, then their biases [O]."""
        weights, biases = weights_biases[: len(weights_biases) // 2], weights_biases[len(weights_biases) // 2 :]
        runs = [list(run) for _, run in groupby(weights, lambda weight_OI: weight_OI.shape)]
        run_ROI = [run[0][None] if len(run) == 1 else torch.stack(run) for run in runs]
        ctx.save_for_backward(x_NI, *run_ROI)
        y_NO = repeated(torch.cat(biases)[None], x_NI.shape[0])[0]
        for weight_ROI, x_RNI, y_RNO in zip(
            run_ROI, _of_runs(x_NI, run_ROI, 2), _of_runs(y_NO, run_ROI, 1), strict=True
        ):
            y_RNO.baddbmm_(x_RNI, weight_ROI.mT)
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_NO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of all inputs, and of all weights and biases."""
        x_NI, *run_ROI = ctx.saved_tensors
        d_x_NI = torch.empty_like(x_NI, memory_format=torch.contiguous_format)
        d_weights: list[Tensor] = []
        parts = (_of_runs(x_NI, run_ROI, 2), _of_runs(d_x_NI, run_ROI, 2), _of_runs(d_y_NO, run_ROI, 1))
        for weight_ROI, x_RNI, d_x_RNI, d_y_RNO in zip(run_ROI, *parts, strict=True):
            torch.bmm(d_y_RNO, weight_ROI, out=d_x_RNI)
            d_weights += torch.bmm(d_y_RNO.mT, x_RNI).unbind()
        outputs = [weight_ROI.shape[1] for weight_ROI in run_ROI for _ in range(weight_ROI.shape[0])]
        return d_x_NI, *d_weights, *column_sum(d_y_NO[None])[0].split(outputs)


def _of_runs(x_NI: Tensor, run_ROI: list[Tensor], dim: int) -> list[Tensor]:
    """Columns of a matrix that belong to each run [R, N, I or O]: views. ``dim`` is that of the weight."""
    parts = x_NI.split([weight_ROI.shape[0] * weight_ROI.shape[dim] for weight_ROI in run_ROI], 1)
    return [
        part.unflatten(1, (weight_ROI.shape[0], weight_ROI.shape[dim])).transpose(0, 1)
        for part, weight_ROI in zip(parts, run_ROI, strict=True)
    ]
