"""Ordered rows -> the history store; and whole histories, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from laser.schema import Schema
from laser.seqvault import SeqVault


def write_stream(path: Path, schema: Schema, batches: Iterable[pa.RecordBatch], advance: Callable[[int], None]) -> None:
    """Make a store of batches sorted by user, time and log row."""
    with SeqVault.create(path, schema) as vault:
        for batch in batches:
            events = {f.name: values(batch, f.name, f.dtype) for f in schema.event}
            vault.append(values(batch, schema.user.name, "int64"), events)
            advance(batch.num_rows)
        vault.compact()


def values(batch: pa.RecordBatch, name: str, dtype: str) -> np.ndarray:
    """A column without nulls in the dtype of its feature."""
    return batch.column(name).to_numpy(zero_copy_only=False).astype(dtype, copy=False)


def runs(sizes: np.ndarray, most: int) -> Iterator[slice]:
    """Neighbours whose sizes add up to at most ``most``; one that is larger stands alone."""
    edges = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    first = 0
    while first < len(sizes):
        stop = max(first + 1, int(np.searchsorted(edges, edges[first] + most, side="right")) - 1)
        yield slice(first, stop)
        first = stop
