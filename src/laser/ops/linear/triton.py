# Kernel bodies are traced by Triton, whose stubs confuse tensors and tuples.
# pyrefly: ignore-errors
"""Sums over the rows of a matrix in Triton, the gradient of a bias; and rows that are all a bias.

Few rows are summed by one launch, whose programs share the columns. Of many rows a first launch makes sums of parts,
and a second adds these up, in order: no atomics, so that equal inputs give equal bits.

Legend of shape suffixes: M matrices; N rows (in the kernel: of one tile); D columns (in the kernel: of one program);
P parts of the rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FILL_ROWS, FILL_COLUMNS = 32, 128
"""Tile of fill_kernel."""
FEW_ROWS = 2048
"""That one launch sums."""
WHOLE_ROWS, WHOLE_COLUMNS = 512, 16
"""Tile of a program that sums all rows of its columns: 16 of half precision are what is read at once at the least."""
PART_ELEMENTS, PART_COLUMNS = 1 << 12, 128
"""Tile of a program that sums a part: four loads of 16 bytes a thread in half precision."""
MOST_PROGRAMS = 1024
"""That sum parts: about eight for each multiprocessor of an H200. A constant, as another number is another order of
summation, and so other bits. Not more than FEW_ROWS, so that the second launch is the last."""


@triton.jit(do_not_specialize=["num_rows"])
def sum_kernel(
    x_MND,
    sum_MPD,
    num_rows,
    matrix_stride,
    row_stride,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum every so many-th tile of rows of BLOCK_D columns of one matrix."""
    part, parts = tl.program_id(0), tl.num_programs(0)
    matrix = tl.program_id(2).to(tl.int64)
    d_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_D = d_D < D
    sum_ND = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(part * BLOCK_N, num_rows, parts * BLOCK_N):
        row_N = first + tl.arange(0, BLOCK_N)
        mask_ND = (row_N < num_rows)[:, None] & in_D[None, :]
        x_at = x_MND + matrix * matrix_stride + row_N.to(tl.int64)[:, None] * row_stride + d_D[None, :]
        sum_ND += tl.load(x_at, mask=mask_ND, other=0.0).to(tl.float32)
    sum_at = sum_MPD + (matrix * parts + part) * D + d_D
    tl.store(sum_at, tl.sum(sum_ND, axis=0).to(sum_MPD.dtype.element_ty), mask=in_D)


@triton.jit(do_not_specialize=["num_rows"])
def fill_kernel(row_MD, y_MND, num_rows, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write BLOCK_N rows of BLOCK_D columns of one matrix, all of them the same."""
    matrix = tl.program_id(2).to(tl.int64)
    row_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_D = d_D < D
    row = tl.load(row_MD + matrix * D + d_D, mask=in_D, other=0.0)
    y_at = y_MND + (matrix * num_rows + row_N.to(tl.int64))[:, None] * D + d_D[None, :]
    mask_ND = (row_N < num_rows)[:, None] & in_D[None, :]
    tl.store(y_at, tl.broadcast_to(row[None, :], (BLOCK_N, BLOCK_D)), mask=mask_ND)


def repeated(row_MD: Tensor, N: int) -> Tensor:
    """Each row N times, [M, N, D], contiguous: to begin a product with, as its bias."""
    M, D = row_MD.shape
    y_MND = row_MD.new_empty(M, N, D)
    if M * N * D:
        launch: Any = fill_kernel[(triton.cdiv(N, FILL_ROWS), triton.cdiv(D, FILL_COLUMNS), M)]
        launch(row_MD.contiguous(), y_MND, N, D=D, BLOCK_N=FILL_ROWS, BLOCK_D=FILL_COLUMNS, num_warps=4)
    return y_MND


def column_sum(x_MND: Tensor) -> Tensor:
    """Sum over rows [M, D] in the dtype of x, summed in float32 and rounded once.

    Args:
        x_MND: [M, N, D]; float32, bfloat16 or float16. Any strides; copied where the last is not 1.
    """
    M, N, D = x_MND.shape
    x_MND = x_MND if x_MND.stride(-1) == 1 else x_MND.contiguous()
    sum_MD = x_MND.new_empty(M, D)
    if not M * N * D:
        return sum_MD.zero_()
    if N > FEW_ROWS:
        x_MND = _parts(x_MND)
    tile = {"BLOCK_N": WHOLE_ROWS, "BLOCK_D": WHOLE_COLUMNS, "num_warps": 8}
    launch: Any = sum_kernel[(1, triton.cdiv(D, WHOLE_COLUMNS), M)]
    launch(x_MND, sum_MD, x_MND.shape[1], *x_MND.stride()[:2], D=D, **tile)
    return sum_MD


def _parts(x_MND: Tensor) -> Tensor:
    """Sums of parts of the rows, float32 [M, P, D]."""
    M, N, D = x_MND.shape
    block_d = min(int(triton.next_power_of_2(D)), PART_COLUMNS)
    block_n = PART_ELEMENTS // block_d
    columns, tiles = triton.cdiv(D, block_d), triton.cdiv(N, block_n)
    # As many programs as give all the same number of tiles, or one less to the last.
    rounds = triton.cdiv(tiles, max(1, MOST_PROGRAMS // (columns * M)))
    parts = triton.cdiv(tiles, rounds)
    part_MPD = x_MND.new_empty(M, parts, D, dtype=torch.float32)
    launch: Any = sum_kernel[(parts, columns, M)]
    tile = {"BLOCK_N": block_n, "BLOCK_D": block_d, "num_warps": 4}
    launch(x_MND, part_MPD, N, *x_MND.stride()[:2], D=D, **tile)
    return part_MPD
