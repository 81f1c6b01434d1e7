"""Which elements survive a dropout, in plain PyTorch: the specification, on any device.

Legend of shape suffixes: N rows; E elements of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MULTIPLY_1 = 0xBF58476D1CE4E5B9
MULTIPLY_2 = 0x94D049BB133111EB


def signed(value: int) -> int:
    """The int64 with these 64 bits."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _shift_right(value: Tensor, bits: int) -> Tensor:
    # int64 shifts copy the sign; the mask makes the shift a logical one, as splitmix64 wants it.
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def mix(value: Tensor) -> Tensor:
    """Finaliser of splitmix64 on int64 tensors (products wrap): the same bits on every device."""
    value = (value ^ _shift_right(value, 30)) * signed(MULTIPLY_1)
    value = (value ^ _shift_right(value, 27)) * signed(MULTIPLY_2)
    return value ^ _shift_right(value, 31)


def mix_scalar(value: int) -> int:
    """``mix`` of one Python integer; the result is signed."""
    value &= _MASK64
    value = ((value ^ (value >> 30)) * MULTIPLY_1) & _MASK64
    value = ((value ^ (value >> 27)) * MULTIPLY_2) & _MASK64
    return signed(value ^ (value >> 31))


def scalar_hash(*parts: int) -> int:
    """Signed 64-bit hash of a tuple of integers."""
    state = 0
    for part in parts:
        state = mix_scalar(state + GOLDEN + mix_scalar(part))
    return state


def step_hash(site: int, step: int | Tensor) -> int | Tensor:
    """Hash of a site's hash and a step; of a step in a tensor (int64, no dimensions) the same bits in a tensor."""
    if isinstance(step, Tensor):
        return mix(mix(step) + signed(site + GOLDEN))
    return mix_scalar(site + GOLDEN + mix_scalar(step))


def threshold(probability: float) -> int:
    """What 32 bits of a hash must reach."""
    return int(probability * 2**32)


def keep_mask(probability: float, state: int | Tensor, key: Tensor, position: Tensor) -> Tensor:
    """Which elements survive: True with probability ``1 - probability``, as a function of (state, key, position).

    Args:
        probability: of dropping, in [0, 1); resolved to 2^-32.
        state: ``step_hash``.
        key: int64, broadcast against ``position``.
        position: int64.

    Returns:
        bool tensor of the broadcast shape.
    """
    mixed = mix(mix(key + state) + position * signed(GOLDEN))
    return _shift_right(mixed, 32) >= threshold(probability)


def kept(probability: float, dtype: torch.dtype) -> float:
    """Factor of what survives, rounded to ``dtype`` by the host: GPUs may divide with another last bit."""
    return (torch.ones((), dtype=dtype) / (1.0 - probability)).item()


def keep_factor(
    probability: float, site: int, step: int | Tensor, key_N: Tensor, position: Tensor | int, dtype: torch.dtype
) -> Tensor:
    """Factors [N] or [N, E]; see the package."""
    if isinstance(position, int):
        key_N, position = key_N[:, None], torch.arange(position, device=key_N.device)
    return keep_mask(probability, step_hash(site, step), key_N, position).to(dtype) * kept(probability, dtype)
