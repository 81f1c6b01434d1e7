"""Which implementation of an op serves a tensor, and whether it works on this machine."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor


@cache
def has_triton() -> bool:
    """Whether Triton is installed (it comes with torch for CUDA)."""
    return importlib.util.find_spec("triton") is not None


def use_triton(tensor: Tensor) -> bool:
    """Triton serves CUDA tensors up to float32; everything else goes to batched PyTorch."""
    return tensor.is_cuda and tensor.dtype != torch.float64 and has_triton()
