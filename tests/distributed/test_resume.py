"""A run that goes on from a checkpoint sees the rows, numbers and metrics of one that was never interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from laser.data.prepared import PreparedData
from laser.train.stored_tensors import StoredTensors

BATCH_SIZE = 170
MIDDLE = 4
PLACES = ("middle", "last_step", "validating")
"""In the first epoch: after step 4, after its last step, and after the second batch of the validation that follows."""


@pytest.fixture(scope="module")
def runs(launch: Callable, prepared: Path, tmp_path_factory) -> Path:
    """Folders of uninterrupted runs of 1 and 2 processes, and of runs that go on from each of their checkpoints."""
    root = tmp_path_factory.mktemp("runs")
    for processes, other in ((1, 2), (2, 1)):
        whole = {"folder": str(root / f"{processes}"), "data": str(prepared), "batch_size": BATCH_SIZE}
        jobs = [whole | {"save_after": MIDDLE, "save_in_validation": True}]
        for place in PLACES:
            checkpoint = str(root / f"{processes}" / f"{place}.ckpt")
            jobs.append(whole | {"folder": str(root / f"{processes} from {place}"), "checkpoint": checkpoint})
        if (root / f"{other}").exists():
            for place in PLACES:
                checkpoint = str(root / f"{other}" / f"{place}.ckpt")
                folder = str(root / f"{processes} from {other} {place}")
                sharding = "table_wise" if place == "middle" else "row_wise"
                jobs.append(whole | {"folder": folder, "checkpoint": checkpoint, "sharding": sharding})
        launch(processes, jobs)
    return root


def record(folder: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"losses.{rank}.json").read_text())


def rows(folder: Path) -> list[list[int]]:
    """Rows of each step over all ranks, in order of rank."""
    ranks = [record(folder, int(path.suffixes[0][1:]))["rows"] for path in sorted(folder.glob("losses.*.json"))]
    return [list(chain(*parts)) for parts in zip(*ranks, strict=True)]


def tensors(folder: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    file = tmp_path / f"{folder.name}.pt"
    dcp_to_torch_save(folder / "end.ckpt", file)
    return torch.load(file, weights_only=True)


def test_shards_are_read_whole_by_one_process(runs, tmp_path):
    stored, expected = StoredTensors(runs / "2" / "end.ckpt"), tensors(runs / "2", tmp_path)
    assert stored.names == sorted(expected)
    assert max(map(stored.pieces, stored.names)) == 2
    assert [name for name, value in expected.items() if not torch.equal(stored.read(name), value)] == []


@pytest.fixture(scope="module")
def steps(prepared: Path) -> int:
    """Steps of an epoch."""
    with PreparedData(prepared) as data:
        return -(-len(data.split("train")) // BATCH_SIZE)


def test_an_epoch_has_every_row_once(runs, prepared, steps):
    with PreparedData(prepared) as data:
        count = len(data.split("train"))
    for name in ("1", "2"):
        for epoch in (0, 1):
            seen = rows(runs / name)[epoch * steps : (epoch + 1) * steps]
            assert sorted(chain(*seen)) == list(range(count))


@pytest.mark.parametrize("name", ["1", "2", "2 from 1"])
@pytest.mark.parametrize("place", PLACES)
def test_no_row_is_lost_or_repeated(runs, steps, name, place):
    resumed = f"{name} {place}" if "from" in name else f"{name} from {place}"
    done = MIDDLE if place == "middle" else steps
    assert rows(runs / resumed) == rows(runs / "1")[done:]


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("place", PLACES)
def test_same_processes_are_bitwise_equal(runs, tmp_path, processes, place):
    whole, resumed = runs / processes, runs / f"{processes} from {place}"
    a, b = tensors(whole, tmp_path), tensors(resumed, tmp_path)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    for rank in range(int(processes)):
        a, b = record(whole, rank), record(resumed, rank)
        assert b["losses"].items() <= a["losses"].items()
        assert a["random"][-len(b["random"]) :] == b["random"]
        assert a["validations"] == b["validations"]


@pytest.mark.parametrize("place", PLACES)
def test_other_processes_and_sharding_are_equal_to_rounding(runs, tmp_path, place):
    whole, resumed = tensors(runs / "1", tmp_path), tensors(runs / f"2 from 1 {place}", tmp_path)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=2e-4, atol=2e-5)
    a, b = record(runs / "1")["validations"], record(runs / f"2 from 1 {place}")["validations"]
    assert len(a) == len(b) == 2
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-3)
