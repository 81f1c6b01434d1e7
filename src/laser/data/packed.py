"""A batch in one buffer, tensor after tensor, each at a multiple of ``ALIGNMENT``::

    history.item int64      history.skill int64     ...   distinct.skill int64
    [ . . . . . . . . |pad] [ . . . . . . . . |pad] ...   [ . . . . . . . |pad]

Values are written where they stay: a batch has some 30 tensors and 30 MB, and each call that allocates or copies one
costs pages, memory traffic and the interpreter's lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from laser.batch import Batch

ALIGNMENT = 128
"""Bytes: a cache line of a GPU. Kernels that read in units of 16 bytes are compiled for such addresses."""

TORCH = {np.dtype(np.int64): torch.int64, np.dtype(np.int32): torch.int32, np.dtype(np.float32): torch.float32}

PARTS = ("items", "history", "target", "context", "distinct", "place")
"""Fields of a batch that are dictionaries of tensors."""

Memory = Callable[[int], Tensor]
"""Gives a uint8 buffer of so many bytes, in host memory."""


def plain_memory(size: int) -> Tensor:
    """Memory of the process. numpy asks for large pages where it pays, torch does not."""
    return torch.from_numpy(np.empty(size, np.uint8))


def aligned(count: int) -> int:
    """Bytes that ``count`` bytes take in the buffer."""
    return -(-count // ALIGNMENT) * ALIGNMENT


class Form(NamedTuple):
    """A tensor of a batch: ``field``, with a ``name`` when the field is a dictionary, and what it holds."""

    field: str
    name: str | None
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Without padding."""
        return math.prod(self.shape) * self.dtype.itemsize


class Packed:
    """A buffer, and which tensors of a batch lie where in it.

    Args:
        forms: of the tensors, one behind the other.
        spare: bytes behind them, for tensors whose size is not known yet.
        memory: where the buffer comes from.
        on_host: offsets and histories outside the buffer, for a batch that is copied to a device.
        step: of the batch.
        global_size: of the batch.
    """

    def __init__(
        self,
        forms: list[Form],
        spare: int,
        memory: Memory,
        on_host: tuple[np.ndarray, np.ndarray],
        step: int,
        global_size: int,
    ) -> None:
        self.forms, self.on_host = forms, on_host
        self.step, self.global_size = step, global_size
        self.first = list(accumulate((aligned(form.nbytes) for form in forms), initial=0))
        """Bytes before each tensor, and before the spare ones."""
        self._whole = memory(self.first[-1] + spare)
        self._bytes = self._whole.numpy()

    @property
    def flat(self) -> Tensor:
        """The part of the buffer that holds tensors."""
        return self._whole[: self.first[-1]]

    @property
    def address(self) -> int:
        """Of the buffer."""
        return self._whole.data_ptr()

    def arrays(self) -> dict[tuple[str, str | None], np.ndarray]:
        """The tensors by field and name, to be written."""
        return {
            (form.field, form.name): np.ndarray(form.shape, form.dtype, self._bytes, first)
            for form, first in zip(self.forms, self.first)
        }

    def add(self, form: Form) -> np.ndarray:
        """The next tensor, from the spare bytes."""
        first = self.first[-1]
        self.forms.append(form)
        self.first.append(first + aligned(form.nbytes))
        assert self.first[-1] <= len(self._bytes), form
        return np.ndarray(form.shape, form.dtype, self._bytes, first)

    def batch(self, there: Tensor | None = None) -> Batch:
        """A batch of views: into ``there``, a copy of ``flat`` on any device, or into the buffer itself."""
        fields: dict[str, Any] = {name: {} for name in PARTS}
        for form, tensor in zip(self.forms, self._views(self.flat if there is None else there), strict=True):
            if form.name is None:
                fields[form.field] = tensor
            else:
                fields[form.field][form.name] = tensor
        # Not parts of the buffer, which would stay page-locked for as long as the batch lives.
        if there is not None:
            off_U1, history_of_B = map(torch.from_numpy, self.on_host)
            fields["on_host"] = off_U1, history_of_B
            fields["distinct_on_host"] = {
                form.name: torch.from_numpy(np.ndarray(form.shape, form.dtype, self._bytes, first).copy())
                for form, first in zip(self.forms, self.first)
                if form.field == "distinct"
            }
        return Batch(**fields, step=self.step, global_size=self.global_size)

    def _views(self, flat: Tensor) -> list[Tensor]:
        # Each call of torch gives the interpreter's lock away, and so does each tensor that is let go of: splitting the
        # buffer takes fewer calls, but makes a tensor of every padding.
        whole = {dtype: flat.view(TORCH[dtype]) for dtype in dict.fromkeys(form.dtype for form in self.forms)}
        return [
            whole[form.dtype].as_strided(form.shape, _strides(form.shape), first // form.dtype.itemsize)
            for form, first in zip(self.forms, self.first)
        ]


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) if len(shape) == 1 else (max(shape[1], 1), 1)
