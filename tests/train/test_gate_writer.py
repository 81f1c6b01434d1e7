"""Files of gates from several processes, without processes: each writer is one of them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from laser.data.collate import Collator
from laser.data.prepared import PreparedData
from laser.data.samples import share
from laser.model.output import Gates
from laser.train import gate_writer
from laser.train.gate_writer import GateWriter
from laser.train.part_files import PartFiles

WIDTH = 4


def write(data: PreparedData, path: Path, processes: int, batch_size: int, rows: int) -> None:
    """Gates that tell their sample's row and the event's position, from batches as the loader cuts them."""
    samples, collate = data.split("test"), Collator(data, 20)
    writers = [GateWriter(PartFiles(path, rank, processes), data.schema, "Laser") for rank in range(processes)]
    for start in range(0, rows, batch_size):
        row_B = np.arange(start, min(start + batch_size, rows))
        for rank, writer in enumerate(writers):
            mine = row_B[share(len(row_B), rank, processes)]
            batch = collate(samples.take(mine), mine, step=0, global_size=len(row_B))
            length_B = batch.off_U1.diff()[batch.history_of_B]
            event_off_B1 = torch.nn.functional.pad(length_B.cumsum(0), (1, 0))
            position_E = torch.arange(int(event_off_B1[-1])) - event_off_B1[:-1].repeat_interleave(length_B)
            gate_EH = torch.stack([batch.row_B.repeat_interleave(length_B), position_E], 1) / 1024
            columns = {"row": mine, "user": batch.user_B.numpy()}
            writer.add(columns, Gates(gate_EH, event_off_B1, WIDTH, "sigmoid"), batch)
    for writer in writers:
        writer.close()
    writers[0].merge()


@pytest.mark.parametrize(("processes", "batch_size"), [(1, 50), (3, 7), (4, 2)])
def test_merged_in_order_in_bounded_groups(
    prepared: Path, tmp_path: Path, processes: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_writer, "GROUP_EVENTS", 100)
    path = tmp_path / "predictions" / "test_gates.parquet"
    with PreparedData(prepared) as data:
        write(data, path, processes, batch_size, rows=50)
    table = pq.read_table(path)
    assert table["row"].to_pylist() == list(range(50))
    for row, first, second, ends in zip(*(table[n].to_pylist() for n in ("row", "gates_0", "gates_1", "segment_ends"))):
        assert first == [row / 1024] * len(first)
        assert second == [position / 1024 for position in range(len(first))]
        assert ends == list(range(len(first), 0, -WIDTH))[::-1]
    file = pq.ParquetFile(path)
    groups = [file.read_row_group(group)["gates_0"] for group in range(file.num_row_groups)]
    events = [sum(map(len, group.to_pylist())) for group in groups]
    assert len(events) > 3
    assert max(events) < 220
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_part_that_a_killed_run_left_is_not_merged(prepared: Path, tmp_path: Path) -> None:
    path = tmp_path / "test_gates.parquet"
    for rank in (0, 1):
        PartFiles(path, rank, 2).own.write_bytes(b"old")
    with PreparedData(prepared) as data:
        write(data, path, 1, 10, rows=10)
    assert len(pq.read_table(path)) == 10


def test_a_network_without_gates_is_named(prepared: Path, tmp_path: Path) -> None:
    with PreparedData(prepared) as data:
        writer = GateWriter(PartFiles(tmp_path / "test_gates.parquet", 0, 1), data.schema, "EncoderModel")
        batch = Collator(data, 20)(data.split("test").take(np.arange(2)), np.arange(2), step=0, global_size=2)
    with pytest.raises(ValueError, match="EncoderModel, which has none"):
        writer.add({}, None, batch)
    assert not list(tmp_path.iterdir())
