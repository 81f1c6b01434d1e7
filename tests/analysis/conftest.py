"""Files of gates written by hand, small enough to count."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Sample = tuple[int, Sequence[Sequence[float]]]


@pytest.fixture
def write_gates(tmp_path: Path) -> Callable[..., Path]:
    """``write(samples, width=2, kind="sigmoid", groups=2, name=..., **columns)``; a sample is its target and gates."""

    def write(
        samples: Sequence[tuple[int, Sequence[Sequence[float]]]],
        *,
        width: int = 2,
        kind: str = "sigmoid",
        group: int = 2,
        name: str = "test_gates.parquet",
        items: Sequence[Sequence[int]] | None = None,
        ratings: Sequence[Sequence[int]] | None = None,
        earlier: Sequence[int] | None = None,
    ) -> Path:
        lengths = [len(gates) for _, gates in samples]
        items = items or [[1] * n for n in lengths]
        ratings = ratings or [[1] * n for n in lengths]
        heads = len(next(gates for _, gates in samples if len(gates))[0])
        rows = np.arange(len(samples))
        table = {
            "row": pa.array(rows),
            "user": pa.array(rows // 2),
            "item": pa.array([item for item, _ in samples]),
            "label": pa.array((rows % 2).astype(np.int8)),
            "history_length": pa.array(lengths),
            "earlier_events": pa.array(earlier or lengths),
            "segment_ends": pa.array([list(range(n, 0, -width))[::-1] for n in lengths], pa.list_(pa.int32())),
        }
        for head in range(heads):
            values = [[np.float16(gate[head]) for gate in gates] for _, gates in samples]
            table[f"gates_{head}"] = pa.array(values, pa.list_(pa.float16()))
        table["age_seconds"] = pa.array([[60.0 * (n - i) for i in range(n)] for n in lengths], pa.list_(pa.float32()))
        table["event_item"] = pa.array(items, pa.list_(pa.uint32()))
        table["event_rating"] = pa.array(ratings, pa.list_(pa.uint8()))
        about = {"format": 1, "gate": kind, "heads": heads, "segment_width": width}
        about |= {"schema": "s", "data_set": "d", "events": ["item", "rating"]}
        whole = pa.table(table).replace_schema_metadata({"laser": json.dumps(about)})
        pq.write_table(whole, tmp_path / name, row_group_size=group)
        return tmp_path / name

    return write
