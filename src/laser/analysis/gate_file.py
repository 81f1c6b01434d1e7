"""Reading predictions with gates, a row group at a time.

Two samples with histories of 3 and 2 events, segments of 2::

    event_off_B1    [ 0        3     5 ]     events of each sample, oldest first
    event_off_G1    [ 0  1     3     5 ]     events of each segment
    rank_E          [ 2  1  0  1  0 ]        counted back from the newest

Legend of shape suffixes: B samples; E events of samples, packed; G segments, packed; H heads; K values of a
multi-valued field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT = 1
CURE = "laser test --gates or laser predict --gates writes it"


@dataclass(frozen=True)
class GatedSamples:
    """Consecutive samples with all their events.

    Args:
        columns: per sample [B]: row, user, item, timestamp, label, probability, history_length, earlier_events.
        event_off_B1: int64 [B + 1].
        event_off_G1: int64 [G + 1].
        gate_EH: float32 [E, H], in [0, 1].
        age_E: float32 [E], seconds from event to sample.
        events: per field of an event [E] or [E, K]: the item's code, and what the store keeps beside it.
    """

    columns: dict[str, np.ndarray]
    event_off_B1: np.ndarray
    event_off_G1: np.ndarray
    gate_EH: np.ndarray
    age_E: np.ndarray
    events: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.event_off_B1) - 1

    @cached_property
    def sample_E(self) -> np.ndarray:
        """Which sample an event belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.event_off_B1))

    @cached_property
    def rank_E(self) -> np.ndarray:
        """Events between this one and the sample: 0 for the newest."""
        return self.event_off_B1[1:][self.sample_E] - 1 - np.arange(len(self.gate_EH))

    @cached_property
    def segment_E(self) -> np.ndarray:
        """Which segment an event belongs to."""
        return np.repeat(np.arange(len(self.event_off_G1) - 1), np.diff(self.event_off_G1))

    def part(self, first: int, last: int) -> GatedSamples:
        """Samples ``first`` to ``last - 1``."""
        start, stop = self.event_off_B1[first], self.event_off_B1[last]
        # An end of a segment belongs to the samples that its events do; the start of the first one is kept as well.
        ends = self.event_off_G1[(self.event_off_G1 > start) & (self.event_off_G1 <= stop)]
        return GatedSamples(
            {name: column[first:last] for name, column in self.columns.items()},
            self.event_off_B1[first : last + 1] - start,
            np.concatenate([[start], ends]) - start,
            self.gate_EH[start:stop],
            self.age_E[start:stop],
            {name: values[start:stop] for name, values in self.events.items()},
        )


class GateFile:
    """Predictions with gates.

    Args:
        path: a file ``predictions/SPLIT_gates.parquet`` of a run.

    Attributes:
        kind: "sigmoid" or "softmax".
        heads: H.
        segment_width: events of a segment; the oldest of a sample may have fewer.
        schema: fingerprint of the data set's schema.
        fields: names of the events' fields, the item first.

    Raises:
        ValueError: when there is no such file, or it is of something else.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with pq.ParquetFile(self.path) as file:
                about: dict[str, Any] = json.loads((file.schema_arrow.metadata or {})[b"laser"])
                self._samples, self._groups = file.metadata.num_rows, file.num_row_groups
        except FileNotFoundError:
            raise ValueError(f"no predictions with gates at {self.path}; {CURE}") from None
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            found = "it is no Parquet file" if not isinstance(error, KeyError) else "it has no gates"
            raise ValueError(f"{self.path} holds no predictions with gates ({found}); {CURE}") from None
        if about["format"] != FORMAT:
            raise ValueError(f"{self.path} has format {about['format']}, this release reads {FORMAT}; write it again")
        self.kind, self.heads, self.segment_width = about["gate"], about["heads"], about["segment_width"]
        self.schema, self.fields = about["schema"], tuple(about["events"])

    def __len__(self) -> int:
        return self._samples

    def chunks(self) -> Iterator[GatedSamples]:
        """All samples in order, some hundred thousand events at a time."""
        with pq.ParquetFile(self.path) as file:
            for group in range(self._groups):
                yield self._samples_of(file.read_row_group(group).combine_chunks())

    def rows_of(self, user: int) -> np.ndarray:
        """Row numbers of a user's samples, oldest first.

        Raises:
            ValueError: when the user has none.
        """
        table = pq.read_table(self.path, columns=["row", "user", "timestamp"], filters=[("user", "=", user)])
        if not len(table):
            raise ValueError(f"{self.path} has no samples of user {user}")
        return table.sort_by("timestamp")["row"].to_numpy()

    def sample(self, row: int) -> GatedSamples:
        """The one sample with this row number.

        Raises:
            ValueError: when it is not in the file.
        """
        for chunk in self.chunks():
            if len(at := np.flatnonzero(chunk.columns["row"] == row)):
                return chunk.part(int(at[0]), int(at[0]) + 1)
        raise ValueError(f"{self.path} has no row {row}; it has {len(self)} samples")

    def _samples_of(self, table: pa.Table) -> GatedSamples:
        event_off_B1, age_E = _flat(table["age_seconds"])
        seg_off_B1, end_G = _flat(table["segment_ends"])
        events = {name: _flat(table[f"event_{name}"])[1] for name in self.fields}
        gates = [_flat(table[f"gates_{head}"])[1].astype(np.float32) for head in range(self.heads)]
        names = [field.name for field in table.schema if not pa.types.is_list(field.type)]
        first_G = np.repeat(event_off_B1[:-1], np.diff(seg_off_B1))
        return GatedSamples(
            {name: table[name].to_numpy() for name in names},
            event_off_B1,
            np.concatenate([[0], first_G + end_G]),
            np.stack(gates, axis=1),
            age_E,
            events,
        )


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets from 0 and values of a column of lists; lists of fixed length inside become a second dimension."""
    lists = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    off_B1 = lists.offsets.to_numpy().astype(np.int64)
    values = lists.flatten()
    if pa.types.is_fixed_size_list(values.type):
        return off_B1 - off_B1[0], values.flatten().to_numpy().reshape(len(values), -1)
    return off_B1 - off_B1[0], values.to_numpy()
