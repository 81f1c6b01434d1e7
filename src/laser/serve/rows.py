"""Rows of embedding tables in four precisions, looked up where they lie in a memory map.

``int8`` and ``int4`` are quantised row by row: with the row's smallest value m and scale s = (largest - m) / (2^bits -
1), a value x is stored as round((x - m) / s). Two int4 values share a byte, the first in its low half. m and s are
float32.

Legend of shape suffixes: R rows; N rows looked up; W width; P stored bytes of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from laser.tensor_file import Entry

Precision = Literal["fp32", "fp16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BITS = {"int8": 8, "int4": 4}
BLOCK_ROWS = 1 << 18
"""Rows that are quantised at once."""
ROWS, SCALE, MINIMUM = "rows", "scale", "minimum"


def quantised(x_NW: Tensor, precision: Precision) -> dict[str, Tensor]:
    """Parts of float32 rows as they are stored, by name.

    Returns:
        ``rows`` alone for fp32 and fp16; for int8 and int4 uint8 ``rows`` [N, P], and float32 ``scale`` and
        ``minimum`` [N].
    """
    if precision not in BITS:
        return {ROWS: x_NW.to(torch.float16 if precision == "fp16" else torch.float32)}
    most = 2 ** BITS[precision] - 1
    minimum_N, maximum_N = x_NW.amin(1), x_NW.amax(1)
    scale_N = (maximum_N - minimum_N) / most
    # A row of one value has scale 0: any divisor gives code 0, which stands for its minimum.
    divisor_N = torch.where(scale_N > 0, scale_N, 1.0)
    code_NW = ((x_NW - minimum_N[:, None]) / divisor_N[:, None]).round_().clamp_(0, most).to(torch.uint8)
    if precision == "int4":
        code_NW = torch.nn.functional.pad(code_NW, (0, code_NW.shape[1] % 2))
        code_NW = code_NW[:, 0::2] | (code_NW[:, 1::2] << 4)
    return {ROWS: code_NW, SCALE: scale_N, MINIMUM: minimum_N}


def restored(parts: dict[str, Tensor], width: int) -> Tensor:
    """Float32 rows [N, W] of what ``quantised`` returned for them."""
    rows = parts[ROWS]
    if SCALE not in parts:
        return rows.float()
    if rows.shape[1] != width:
        rows = torch.stack([rows & 15, rows >> 4], dim=-1).flatten(1)[:, :width]
    return torch.addcmul(parts[MINIMUM][:, None], rows.float(), parts[SCALE][:, None])


@dataclass(frozen=True)
class Table:
    """An embedding table, its parts [R, ...] possibly far larger than memory.

    Args:
        parts: as ``quantised`` returns them.
        width: W.
    """

    parts: dict[str, Tensor]
    width: int

    def __call__(self, ids_N: Tensor) -> Tensor:
        """Float32 rows [N, W] of int64 ids in [0, R)."""
        return restored({name: part.index_select(0, ids_N) for name, part in self.parts.items()}, self.width)


def entries(
    name: str, rows: int, width: int, read: Callable[[int, int], Tensor], precision: Precision
) -> dict[str, Entry]:
    """A table as tensors of a file, named ``NAME.rows`` and so on.

    Args:
        name: of the table.
        rows: R.
        width: W.
        read: gives float32 rows from a first one up to, without, a last one.
        precision: to store it in.
    """

    def blocks(part: str) -> Iterator[Tensor]:
        for first in range(0, rows, BLOCK_ROWS):
            yield quantised(read(first, min(first + BLOCK_ROWS, rows)), precision)[part]

    def part_of(part: str) -> Callable[[], Iterable[Tensor]]:
        return lambda: blocks(part)

    like = quantised(torch.zeros(1, width), precision)
    return {
        f"{name}.{part}": Entry(tensor.dtype, (rows, *tensor.shape[1:]), part_of(part)) for part, tensor in like.items()
    }
