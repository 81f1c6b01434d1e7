"""Dropout without random state: the mask is a hash of where an element stands in the run.

The key is (seed, site, step, sample or history, position). A mask therefore does not depend on how samples are spread
over processes, on the order within a batch, or on what was drawn before; a resumed run needs no generator state.

Legend of shape suffixes: B samples; T history events, packed; M tokens; D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _shift_right(value: Tensor, bits: int) -> Tensor:
    # int64 shifts copy the sign; the mask makes the shift a logical one, as splitmix64 wants it.
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def mix(value: Tensor) -> Tensor:
    """Finaliser of splitmix64 on int64 tensors (products wrap): the same bits on every device."""
    value = (value ^ _shift_right(value, 30)) * _signed(_MULTIPLY_1)
    value = (value ^ _shift_right(value, 27)) * _signed(_MULTIPLY_2)
    return value ^ _shift_right(value, 31)


def mix_scalar(value: int) -> int:
    """``mix`` of one Python integer; the result is signed."""
    value &= _MASK64
    value = ((value ^ (value >> 30)) * _MULTIPLY_1) & _MASK64
    value = ((value ^ (value >> 27)) * _MULTIPLY_2) & _MASK64
    return _signed(value ^ (value >> 31))


def scalar_hash(*parts: int) -> int:
    """Signed 64-bit hash of a tuple of integers."""
    state = 0
    for part in parts:
        state = mix_scalar(state + _GOLDEN + mix_scalar(part))
    return state


def step_hash(seed: int, site: int, step: int | Tensor) -> int | Tensor:
    """``scalar_hash`` of the three; of a step in a tensor (int64, no dimensions) the same bits in a tensor."""
    if isinstance(step, Tensor):
        return mix(mix(step) + _signed(scalar_hash(seed, site) + _GOLDEN))
    return scalar_hash(seed, site, step)


def keep_mask(probability: float, state: int | Tensor, key: Tensor, position: Tensor) -> Tensor:
    """Which elements survive: True with probability ``1 - probability``, as a function of (state, key, position).

    Args:
        probability: of dropping, in [0, 1); resolved to 2^-32.
        state: hash of seed, site and step, signed.
        key: int64, broadcast against ``position``.
        position: int64.

    Returns:
        bool tensor of the broadcast shape.
    """
    mixed = mix(mix(key + state) + position * _signed(_GOLDEN))
    return _shift_right(mixed, 32) >= int(probability * 2**32)


class _HashedDropout(nn.Module):
    site: int

    def __init__(self, probability: float, seed: int = 0) -> None:
        super().__init__()
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"dropout probability is {probability}; expected a value in [0, 1), 0 to switch it off")
        self.probability = probability
        self.seed = seed

    @property
    def active(self) -> bool:
        return self.training and self.probability > 0.0

    def scale(self, keep: Tensor, dtype: torch.dtype) -> Tensor:
        return keep.to(dtype) / (1.0 - self.probability)

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


class EventDropout(_HashedDropout):
    """Drops whole events; the survivors are scaled by 1 / (1 - p). Identity in evaluation and for p = 0.

    The key is the history and the event's rank from the newest, so copies of a history lose the same events.
    """

    site = 1

    def forward(self, history_key_T: Tensor, rank_T: Tensor, step: int | Tensor) -> Tensor | None:
        """Float32 factor of each event: 0 where (step, history key, rank) hashes below p; ``None`` where all are 1."""
        if not self.active:
            return None
        keep_T = keep_mask(self.probability, step_hash(self.seed, self.site, step), history_key_T, rank_T)
        return self.scale(keep_T, torch.float32)


class TokenDropout(_HashedDropout):
    """Drops single elements of the fusion tokens, keyed by the sample's row in its split and the position."""

    site = 2

    def forward(self, tokens_BMD: Tensor, row_B: Tensor, step: int | Tensor) -> Tensor:
        """Zero the elements of ``tokens_BMD`` whose (step, row, position) hashes below p."""
        if not self.active:
            return tokens_BMD
        elements = tokens_BMD.shape[1] * tokens_BMD.shape[2]
        position_MD = torch.arange(elements, device=tokens_BMD.device).view(tokens_BMD.shape[1:])
        state = step_hash(self.seed, self.site, step)
        keep_BMD = keep_mask(self.probability, state, row_B[:, None, None], position_MD)
        return tokens_BMD * self.scale(keep_BMD, tokens_BMD.dtype)
