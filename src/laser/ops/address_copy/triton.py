# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""Copies from addresses that are in memory of the device. A *word* is the smallest element of all tensors.

Legend of shape suffixes: K tensors; N programs; I words of a program; 2 an address and a number of words, or a tensor
and the first of its words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}
"""By bytes."""
BLOCK = 4096
"""Words of a program: enough programs for every multiprocessor, and many loads of each thread at once."""


@triton.jit
def copy_kernel(here_K2, there_K2, program_N2, WORD: tl.constexpr, BLOCK_I: tl.constexpr):
    """BLOCK_I words of one tensor, or zeros."""
    n = tl.program_id(0)
    k, first = tl.load(program_N2 + 2 * n), tl.load(program_N2 + 2 * n + 1)
    source_I, live = tl.load(here_K2 + 2 * k).to(tl.pointer_type(WORD)), tl.load(here_K2 + 2 * k + 1)
    place_I, whole = tl.load(there_K2 + 2 * k).to(tl.pointer_type(WORD)), tl.load(there_K2 + 2 * k + 1)
    i_I = first + tl.arange(0, BLOCK_I)
    word_I = tl.load(source_I + i_I, mask=i_I < live, other=0)
    tl.store(place_I + i_I, word_I, mask=i_I < whole)


class AddressCopy:
    """Copies to fixed places.

    Args:
        there: contiguous tensors, on one device, which must live as long as this.
    """

    def __init__(self, there: Sequence[Tensor]) -> None:
        self.there = list(there)
        self.bytes = min(tensor.element_size() for tensor in there)
        sizes_K = [tensor.nbytes // self.bytes for tensor in there]
        programs = [(k, first) for k, size in enumerate(sizes_K) for first in range(0, size, BLOCK)]
        places = [(tensor.data_ptr(), size) for tensor, size in zip(there, sizes_K)]
        device = self.there[0].device
        # From page-locked memory: the host does not wait for a device that is still busy with the step before.
        self.there_K2, self.program_N2 = (
            torch.tensor(pairs, pin_memory=device.type == "cuda").view(-1, 2).to(device, non_blocking=True)
            for pairs in (places, programs)
        )

    def sources(self, here: Sequence[Tensor]) -> list[int]:
        """Addresses and numbers of words of tensors, one after another.

        Raises:
            ValueError: when one of them has another dtype than its place, is larger, or is not contiguous.
        """
        numbers: list[int] = []
        for source, place in zip(here, self.there, strict=True):
            fits = source.dtype == place.dtype and source.nbytes <= place.nbytes and source.is_contiguous()
            if not fits or source.device != place.device:
                raise ValueError(
                    f"{source.dtype} {list(source.shape)} with strides {source.stride()} on {source.device} cannot be "
                    f"copied to {place.dtype} {list(place.shape)} on {place.device}"
                )
            numbers += (source.data_ptr(), source.nbytes // self.bytes)
        return numbers

    def __call__(self, here_K2: Tensor) -> None:
        """Copy from what ``sources`` gave, int64 on the device; the tensors must live until the device is done."""
        if len(self.program_N2):
            copy_kernel[(len(self.program_N2),)](
                here_K2, self.there_K2, self.program_N2, WORD=WORDS[self.bytes], BLOCK_I=BLOCK, num_warps=8
            )
