"""Moving average, schedule and weight decay: by hand, resumed at any place, in two processes, they are the same.

So are sparse experts, whose counts of all processes belong to the step that a checkpoint follows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from laser.train.stored_tensors import StoredTensors

MIDDLE = 5
OPTIONS = {
    "batch_size": 500,
    "save_after": MIDDLE,
    "save_in_validation": True,
    "validation_batch": 0,
    "warm_up": 3,
    "schedule": {"shape": "linear", "steps": 8, "final_fraction": 0.1},
    "weight_decay": 0.1,
    "average": {"decay": 0.8, "start_step": 3, "every": 2},
}
"""Averages are brought up to date after steps 4, 6, 8...; the checkpoint after step 5 lies between two of them."""


@pytest.fixture(scope="module")
def runs(launch: Callable, prepared: Path, tmp_path_factory) -> Path:
    """Folders with the results of all jobs, named as below; 1 and 2 are numbers of processes."""
    root = tmp_path_factory.mktemp("runs")

    def job(name: str, **options) -> dict:
        return {"folder": str(root / name), "data": str(prepared), **OPTIONS, **options}

    def checkpoint(name: str) -> dict[str, str]:
        return {"checkpoint": str(root / name)}

    launch(
        1,
        [
            job("hand", by_hand=True),
            job("one", test=True),
            job("one from middle", **checkpoint("one/middle.ckpt")),
            job("one from validating", **checkpoint("one/validating.ckpt")),
            job("one validates", stage="validate", **checkpoint("one/end.ckpt")),
            job("one tests", stage="test", test=True, **checkpoint("one/end.ckpt")),
        ],
    )
    launch(
        2,
        [
            job("two", sharding="column_wise"),
            job("two from middle", sharding="column_wise", **checkpoint("two/middle.ckpt")),
            job("two from one", **checkpoint("one/middle.ckpt")),
            job("experts", experts=4),
        ],
    )
    return root


def record(folder: Path, name: str):
    return json.loads((folder / "losses.0.json").read_text())[name]


def tensors(folder: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint of a run, whole."""
    file = tmp_path / f"{folder.name}.pt"
    dcp_to_torch_save(folder / "end.ckpt", file)
    return torch.load(file, weights_only=True)


def check_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=2e-4, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_equals_a_hand_written_loop(runs, tmp_path):
    assert record(runs / "one", "losses") == pytest.approx(record(runs / "hand", "losses"), rel=1e-5)
    expected = torch.load(runs / "hand" / "weights.pt")
    ours = {name: value for name, value in tensors(runs / "one", tmp_path).items() if name in expected}
    check_close(ours, expected)
    assert (ours["model.network.logit.weight"] - ours["training.network.logit.weight"]).abs().max() > 1e-4


def test_averages_are_evaluated(runs):
    during, after = (record(runs / name, "validations")[-1] for name in ("one", "one validates"))
    assert during == after
    # A module that has just been trained forgets its averages when it is given a checkpoint to test.
    at_once, anew = (json.loads((runs / name / "metrics.json").read_text())["test"] for name in ("one", "one tests"))
    assert at_once == anew


@pytest.mark.parametrize("resumed", ["one from middle", "one from validating", "two from middle"])
def test_resumed_runs_are_bitwise_equal(runs, tmp_path, resumed):
    whole = resumed.split()[0]
    a, b = tensors(runs / resumed, tmp_path), tensors(runs / whole, tmp_path)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert record(runs / resumed, "losses").items() <= record(runs / whole, "losses").items()
    assert record(runs / resumed, "validations")[-1] == record(runs / whole, "validations")[-1]


@pytest.mark.parametrize("name", ["two", "two from one"])
def test_two_processes_equal_one(runs, tmp_path, name):
    check_close(tensors(runs / name, tmp_path), tensors(runs / "one", tmp_path))


def test_checkpoint_has_the_counts_of_all_processes(runs):
    stored = StoredTensors(runs / "experts" / "middle.ckpt")
    counts = [stored.read(name) for name in stored.names if name.endswith("activity_2")]
    # 500 samples of step 5 over both processes, 4 tokens, 4 experts.
    assert [int(count[1]) for count in counts] == [500 * 4 * 4] * 2
