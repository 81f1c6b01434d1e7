"""Predictions with the gates of every event of their histories, as one Parquet file, however many processes made them.

A row is a sample. Columns: those of the predictions; ``segment_ends``, where each segment of its history ends; then one
list per sample with a value per event, oldest first: ``gates_0`` … ``gates_H-1`` (float16, one column a head),
``age_seconds``, and ``event_NAME`` for the item and each side field of events. Side info of items is not repeated: it
is in ``items.parquet`` of the prepared data set. The file's metadata, key ``laser``, names the kind of gates, the
segment width and the data set. ``laser.analysis`` reads it.

Written and merged by runs of samples with a bounded number of events: memory does not grow with the split.

Legend of shape suffixes: B samples; E events of samples, packed; G segments of samples, packed; H heads; T events of
distinct histories, packed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from laser.batch import Batch
from laser.data.segmented import segment_offsets
from laser.model.output import Gates
from laser.schema import Kind, Schema
from laser.train.gate_statistics import sample_chunks
from laser.train.part_files import PartFiles

FORMAT = 1
GROUP_EVENTS = 1 << 19
"""Events of a row group: some 10 MB; a reader holds one at a time."""


class GateWriter:
    """Writes ``SPLIT_gates.parquet`` beside the predictions of a split.

    Args:
        parts: where to write.
        schema: of the data set.
        network: name of the network's class, for messages.
    """

    def __init__(self, parts: PartFiles, schema: Schema, network: str) -> None:
        self.parts, self.schema, self.network = parts, schema, network
        self.writer: pq.ParquetWriter | None = None
        parts.begin()

    def add(self, columns: dict[str, np.ndarray], gates: Gates | None, batch: Batch) -> None:
        """Write the samples of a batch.

        Args:
            columns: of the predictions, [B] each.
            gates: of these samples.
            batch: that the network saw.

        Raises:
            ValueError: when the network has no gates.
        """
        if gates is None:
            raise ValueError(
                f"--gates asks for the gates of {self.network}, which has none; leave it out, or evaluate a network "
                "with gates, such as laser.model.laser.Laser"
            )
        event_off_B1 = gates.event_off_B1.cpu().numpy()
        history = {f.name: batch.event_ids(f.name).cpu().numpy().astype(f.dtype) for f in _event_fields(self.schema)}
        history_off_U1, history_of_B = batch.off_U1.cpu().numpy(), batch.history_of_B.cpu().numpy()
        age_T = batch.age_T.cpu().numpy()
        for samples, events in sample_chunks(event_off_B1, GROUP_EVENTS):
            off_B1 = event_off_B1[samples.start : samples.stop + 1] - events.start
            row_E = _rows(history_off_U1[history_of_B[samples]], off_B1)
            table = {name: pa.array(column[samples]) for name, column in columns.items()}
            table["segment_ends"] = _segment_ends(off_B1, gates.segment_width)
            gate_EH = gates.gate_EH[events].detach().to(torch.float16).cpu().numpy()
            for head in range(gate_EH.shape[1]):
                table[f"gates_{head}"] = _lists(off_B1, gate_EH[:, head])
            table["age_seconds"] = _lists(off_B1, age_T[row_E])
            table |= {f"event_{name}": _lists(off_B1, values[row_E]) for name, values in history.items()}
            self._write(pa.table(table), gates)

    def _write(self, table: pa.Table, gates: Gates) -> None:
        if self.writer is None:
            about = {
                "format": FORMAT,
                "gate": gates.kind,
                "heads": gates.gate_EH.shape[1],
                "segment_width": gates.segment_width,
                "data_set": self.schema.name,
                "schema": self.schema.fingerprint(),
                "events": [feature.name for feature in _event_fields(self.schema)],
            }
            schema = table.schema.with_metadata({"laser": json.dumps(about)})
            self.writer = pq.ParquetWriter(self.parts.own, schema, compression="zstd")
        self.writer.write_table(table.replace_schema_metadata(None), row_group_size=max(len(table), 1))

    def close(self) -> None:
        """Finish the part of this process."""
        if self.writer is not None:
            self.writer.close()

    def merge(self) -> None:
        """Merge the parts of all processes, which are closed; called by one of them."""
        files = [pq.ParquetFile(part) for part in self.parts.written()]
        with pq.ParquetWriter(self.parts.temporary, files[0].schema_arrow, compression="zstd") as merged:
            for table in _joined(_in_order(files)):
                merged.write_table(table, row_group_size=len(table))
        for file in files:
            file.close()
        self.parts.finish(self.parts.temporary)


def _event_fields(schema: Schema) -> tuple[Any, ...]:
    return schema.of_kind(Kind.ITEM, Kind.EVENT_SIDE)


def _rows(first_B: np.ndarray, off_B1: np.ndarray) -> np.ndarray:
    """Rows of packed histories that a run of samples sees: [E], a sample's events from its ``first_B`` on."""
    return np.repeat(first_B - off_B1[:-1], np.diff(off_B1)) + np.arange(off_B1[-1])


def _lists(off_N1: np.ndarray, values: np.ndarray) -> pa.Array:
    """A list for each of N samples; several values an event become lists of fixed length."""
    flat = pa.array(values) if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
    return pa.ListArray.from_arrays(pa.array(off_N1.astype(np.int32)), flat)


def _segment_ends(off_B1: np.ndarray, width: int) -> pa.Array:
    """Per sample, how many of its events come before the end of each segment, oldest first."""
    seg_off_B1, event_off_G1 = segment_offsets(off_B1, width)
    first_G = np.repeat(off_B1[:-1], np.diff(seg_off_B1))
    return _lists(seg_off_B1, (event_off_G1[1:] - first_G).astype(np.int32))


def _in_order(files: list[pq.ParquetFile]) -> Iterator[pa.Table]:
    """Row groups of all parts by their first row: each is a run of consecutive rows."""
    groups = []
    for file in files:
        for group in range(file.num_row_groups):
            statistics = file.metadata.row_group(group).column(0).statistics
            if statistics is not None and statistics.has_min_max:
                groups.append((statistics.min, len(groups), file, group))
    return (file.read_row_group(group) for _, _, file, group in sorted(groups, key=lambda found: found[:2]))


def _joined(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of about ``GROUP_EVENTS`` events."""
    waiting, events = [], 0
    for table in tables:
        waiting.append(table)
        events += sum(len(chunk.values) for chunk in table["age_seconds"].chunks)
        if events >= GROUP_EVENTS:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, events = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def gate_file(predictions: Path) -> Path:
    """Where the gates of a predictions file are: ``test.parquet`` has them in ``test_gates.parquet``."""
    return predictions.with_name(f"{predictions.stem}_gates.parquet")
