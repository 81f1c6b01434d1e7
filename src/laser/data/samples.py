"""The samples of one split as compact columns, and how a batch of them is divided over processes.

Legend of shape suffixes: N samples of the split; B samples taken; K values of a multi-valued feature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laser.data.columns import CURE, read_columns
from laser.schema import Feature, Kind, Schema
from laser.seqvault.jit import kernel, memmove

ROW = Feature(name="row", kind=Kind.CONTEXT, dtype="int64")


@dataclass(frozen=True)
class Samples:
    """Columns of N samples, in the order of their ``row`` number.

    All of a split is held in memory, in the integer types of the files: with 4-byte ids, an 8-byte timestamp and a
    1-byte label a sample takes 17 bytes and its context, so 10^8 samples take about 2 GB a process.

    Args:
        user_N: user codes.
        item_N: codes of the target items.
        timestamp_N: int64 ticks of the schema's unit.
        label_N: uint8, 0 or 1.
        context: per context field [N] or [N, K] ids.
    """

    user_N: np.ndarray
    item_N: np.ndarray
    timestamp_N: np.ndarray
    label_N: np.ndarray
    context: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        # ``take`` copies rows by address.
        for name in ("user_N", "item_N", "timestamp_N", "label_N"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name)))
        object.__setattr__(self, "context", {k: np.ascontiguousarray(v) for k, v in self.context.items()})

    def __len__(self) -> int:
        return len(self.label_N)

    @classmethod
    def read(cls, folder: Path, schema: Schema) -> Samples:
        """Samples of ``folder``, a directory of ``part-*.parquet``.

        Raises:
            ValueError: when there are none, or a column does not fit the schema.
        """
        files = sorted(folder.glob("part-*.parquet"))
        if not files:
            raise ValueError(f"no part-*.parquet in {folder}; {CURE}")
        once = (schema.user, schema.item, schema.timestamp, schema.label)
        context = schema.of_kind(Kind.CONTEXT)
        columns = read_columns(files, [ROW, *once, *context])
        _check_rows(columns.pop(ROW.name), folder)
        user, item, timestamp, label = (columns[f.name] for f in once)
        # An embedded user id is both the owner of the history and a context field: one array, two names.
        return cls(user, item, timestamp, label, {f.name: columns[f.name] for f in schema.context})

    def take(self, row_B: np.ndarray) -> Samples:
        """Samples of the given rows, in their order.

        Raises:
            IndexError: when there is no such row.
        """
        columns = [self.user_N, self.item_N, self.timestamp_N, self.label_N, *self.context.values()]
        taken = [np.empty((len(row_B), *values.shape[1:]), values.dtype) for values in columns]
        # One call for all columns: each gives the interpreter's lock away and has to wait for it again.
        bytes_C = [values.itemsize * math.prod(values.shape[1:]) for values in columns]
        moves_C3 = np.array(list(zip(map(_address, columns), map(_address, taken), bytes_C, strict=True)))
        if (wrong := _take(row_B, len(self), moves_C3)) >= 0:
            raise IndexError(f"no row {row_B[wrong]} of {len(self)} samples")
        user, item, timestamp, label, *context = taken
        return Samples(user, item, timestamp, label, dict(zip(self.context, context, strict=True)))


@kernel
def _take(row_B, count, moves_C3):
    """Copy chosen rows of each column from one address to another; the third number is the bytes of a row.

    Returns -1, or the place of a row that is not one of ``count``; nothing is copied then.
    """
    for place in range(len(row_B)):
        if not 0 <= row_B[place] < count:
            return place
    for column in range(len(moves_C3)):
        source, to, size = moves_C3[column]
        for row in row_B:
            memmove(to, source + np.int64(row) * size, size)
            to += size
    return -1


def _address(values: np.ndarray) -> int:
    return values.__array_interface__["data"][0]


def _check_rows(row_N: np.ndarray, folder: Path) -> None:
    """Row numbers count from 0: a missing or repeated part would shift what predictions are keyed by."""
    if row_N.size == 0:
        raise ValueError(f"{folder} has no samples; change the split's rule or add data, then run laser-prep again")
    if (wrong := np.flatnonzero(row_N != np.arange(len(row_N)))).size:
        at = wrong[0]
        raise ValueError(f"sample {at} of {folder} has row number {row_N[at]}: a part is missing or misplaced; {CURE}")


def share(count: int, rank: int, world_size: int) -> slice:
    """The contiguous, nearly equal part of ``count`` samples that one process of ``world_size`` works on.

    The parts of all ranks, joined, are the whole; a part is empty when there are fewer samples than processes.
    """
    return slice(count * rank // world_size, count * (rank + 1) // world_size)
