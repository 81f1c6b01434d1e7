"""CRC32C of 8-byte words inside compiled kernels, equal to ``google_crc32c`` of the same bytes."""

from __future__ import annotations

import platform
from typing import Any

import google_crc32c
import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from laser.seqvault.jit import kernel

ONES = np.uint64(0xFFFFFFFF)


def _table() -> np.ndarray:
    """CRC32C of each byte value, for processors without the instruction."""
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(0x82F63B78), values >> 1)
    return values.astype(np.uint64)


TABLE = _table()


def _instruction() -> str | None:
    """Name of LLVM's intrinsic for one 8-byte CRC32C step on this processor."""
    features = llvmlite.binding.get_host_cpu_features()
    return "llvm.x86.sse42.crc32.64.64" if platform.machine() == "x86_64" and features.get("sse4.2") else None


if (INSTRUCTION := _instruction()) is not None:

    @intrinsic
    def _instruction_step(_context: Any, _crc: Any, _word: Any) -> Any:
        def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            word = ir.IntType(64)
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(word, [word, word]), INSTRUCTION)
            return builder.call(function, arguments)

        return types.uint64(types.uint64, types.uint64), generate

    # numba supplies the first argument, which a type checker cannot know.
    _step: Any = _instruction_step

else:

    @kernel
    def _step(crc: Any, word: Any) -> Any:
        for _ in range(8):
            crc = (crc >> np.uint64(8)) ^ TABLE[(crc ^ word) & np.uint64(0xFF)]
            word >>= np.uint64(8)
        return crc


@kernel
def crc32c_words(words: np.ndarray, start: int, stop: int) -> Any:
    """CRC32C of ``words[start:stop]`` (uint64), as uint64."""
    crc = ONES
    for index in range(start, stop):
        crc = _step(crc, words[index])
    return crc ^ ONES


@kernel
def crc32c_header(head: Any, words: np.ndarray, start: int, stop: int) -> Any:
    """CRC32C of the word ``head`` and ``words[start:stop]``."""
    crc = _step(ONES, head)
    for index in range(start, stop):
        crc = _step(crc, words[index])
    return crc ^ ONES


@kernel
def _crc32c_of_rows(words: np.ndarray, size: int, checksums: np.ndarray) -> None:
    whole, rest = size >> 3, size & 7
    for row in range(len(words)):
        crc = ONES
        for index in range(whole):
            crc = _step(crc, words[row, index])
        for index in range(rest):
            byte = words[row, whole] >> np.uint64(8 * index)
            crc = (crc >> np.uint64(8)) ^ TABLE[(crc ^ byte) & np.uint64(0xFF)]
        checksums[row] = crc ^ ONES


def crc32c_of_rows(rows_NS: np.ndarray) -> np.ndarray:
    """CRC32C of each of N rows of S bytes (uint8 [N, S]), uint32 [N]; far faster than one call for each."""
    num_rows, size = rows_NS.shape
    padded = np.zeros((num_rows, (size + 7) // 8 * 8), np.uint8)
    padded[:, :size] = rows_NS
    checksums = np.empty(num_rows, np.uint32)
    _crc32c_of_rows(padded.view(np.uint64), size, checksums)
    return checksums


@kernel
def checksum_of(words: np.ndarray, start: int, stop: int) -> Any:
    """Checksum of an area: CRC32C of the CRC32Cs of its words 0, 4, 8 ..., of its words 1, 5, 9 ..., and so on.

    Four at a time keep the processor busy, which waits three cycles for each step of a single one.
    """
    first, second, third, fourth = ONES, ONES, ONES, ONES
    index, last = np.uint64(start), np.uint64(start + ((stop - start) & ~3))
    while index < last:
        first = _step(first, words[index])
        second = _step(second, words[index + np.uint64(1)])
        third = _step(third, words[index + np.uint64(2)])
        fourth = _step(fourth, words[index + np.uint64(3)])
        index += np.uint64(4)
    if index < np.uint64(stop):
        first = _step(first, words[index])
    if index + np.uint64(1) < np.uint64(stop):
        second = _step(second, words[index + np.uint64(1)])
    if index + np.uint64(2) < np.uint64(stop):
        third = _step(third, words[index + np.uint64(2)])
    joined = _step(ONES, (first ^ ONES) | (second ^ ONES) << np.uint64(32))
    return _step(joined, (third ^ ONES) | (fourth ^ ONES) << np.uint64(32)) ^ ONES


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC32C of bytes."""
    return google_crc32c.value(bytes(data))
