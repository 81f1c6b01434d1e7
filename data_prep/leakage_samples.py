"""The samples of a finished data set as their files hold them: in file order, and gathered by user.

Gathering keeps memory bounded without a sort: the users are taken in ranges whose samples fit, and the files are read
once for each range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_prep.histories import runs
from data_prep.leakage_kernels import place_samples
from data_prep.recipe import SPLITS
from laser.schema import Schema

BATCH_ROWS = 1 << 18
SAMPLE_BYTES = 13
"""Memory of a gathered sample: item (4), time (8) and split (1)."""


@dataclass(frozen=True)
class Gathered:
    """Samples of the users ``first`` … in the order of user, split and file row."""

    first: int
    starts: np.ndarray
    """int64 [users + 1]: user ``first + u`` has the samples ``[starts[u], starts[u + 1])``."""
    item: np.ndarray
    """uint32 codes."""
    time: np.ndarray
    """int64 ticks."""
    split: np.ndarray
    """uint8 places in ``SPLITS``."""


class SampleFiles:
    """Sample files of a data set.

    Raises:
        ValueError: when a split has none.
    """

    def __init__(self, folder: Path, schema: Schema) -> None:
        self.schema = schema
        self._files = {split: sorted((folder / "samples" / split).glob("*.parquet")) for split in SPLITS}
        if empty := [split for split, files in self._files.items() if not files]:
            raise ValueError(
                f"{folder / 'samples' / empty[0]} holds no Parquet file; prepare the data set again with laser-prep"
            )

    def batches(self, split: str, columns: list[str]) -> Iterator[dict[str, np.ndarray]]:
        """Columns in file order, at most ``BATCH_ROWS`` rows at a time."""
        for path in self._files[split]:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                    yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns}

    def by_user(self, samples_of_users: np.ndarray, most_samples: int) -> Iterator[Gathered]:
        """All samples, those of a user together; users without samples may be left out.

        Args:
            samples_of_users: int64, number of samples by user code.
            most_samples: held in memory at a time; a user with more is held whole.
        """
        for run in runs(samples_of_users, most_samples):
            starts = np.concatenate([[0], np.cumsum(samples_of_users[run])])
            if starts[-1]:
                yield self._gather(run.start, starts)

    def _gather(self, first: int, starts: np.ndarray) -> Gathered:
        columns = [self.schema.user.name, self.schema.item.name, self.schema.timestamp.name]
        rows = int(starts[-1])
        item, time, of_split = (np.empty(rows, dtype) for dtype in (np.uint32, np.int64, np.uint8))
        following = starts[:-1].copy()
        for place, split in enumerate(SPLITS):
            for batch in self.batches(split, columns):
                user, items, times = (batch[name].astype(np.int64) for name in columns)
                place_samples(user - first, items, times, place, following, item, time, of_split)
        return Gathered(first, starts, item, time, of_split)
