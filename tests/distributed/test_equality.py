"""The same training however it is run: by hand, sharded, in two processes, interrupted and resumed.

The last batch of every epoch has one sample, so that one of two processes has none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from laser.data.prepared import PreparedData
from laser.train.stored_tensors import StoredTensors

pytestmark = pytest.mark.timeout(900)  # all runs are one fixture: some 100 s of two cores
MIDDLE = 5
"""Step of the checkpoint to resume from, inside of the first epoch and of warm-up."""
MANAGED = {"item": {"rows": 40, "interval": 3}}
"""Half as many rows as there are items; step 5 is in the middle of an interval."""
ROUNDING = {"rtol": 2e-4, "atol": 2e-5}
"""What different orders of float32 sums may come to over 18 steps of Adam."""


@pytest.fixture(scope="module")
def batch_size(prepared: Path) -> int:
    with PreparedData(prepared) as data:
        count = len(data.split("train"))
    sizes = [size for size in range(150, 400) if count % size == 1]
    return sizes[0]


@pytest.fixture(scope="module")
def runs(launch: Callable, prepared: Path, batch_size: int, tmp_path_factory) -> Path:
    """Folders with the results of all jobs, named as below; 1 and 2 are numbers of processes."""
    root = tmp_path_factory.mktemp("runs")

    def job(name: str, **options) -> dict:
        return {"folder": str(root / name), "data": str(prepared), "batch_size": batch_size, **options}

    def middle(name: str) -> str:
        return str(root / name / "middle.ckpt")

    launch(
        1,
        [
            job("hand", by_hand=True),
            job("one", save_after=MIDDLE, test=True),
            job("one again"),
            job("one resumed", checkpoint=middle("one")),
            job("one sgd", optimizer="sgd", epochs=1),
            job("one rowwise", optimizer="rowwise_adagrad", epochs=1),
            job("one experts", experts=4, epochs=1),
            job("one managed", managed_ids=MANAGED, epochs=1, save_after=MIDDLE),
            job("one managed from one", managed_ids=MANAGED, epochs=1, checkpoint=middle("one managed")),
            job("one half", storage={"weights": "float16"}, outputs="float16", epochs=1),
            job("one clipped", table_options={"max_row_gradient": 1e-4}, epochs=1),
        ],
    )
    launch(
        2,
        [
            job("two", save_after=MIDDLE, test=True),
            job("two resumed", checkpoint=middle("two")),
            job("two from one", checkpoint=middle("one")),
            job("two table_wise", sharding="table_wise"),
            job("two column_wise", sharding="column_wise"),
            job("two sgd", optimizer="sgd", epochs=1),
            job("two rowwise", optimizer="rowwise_adagrad", epochs=1),
            job("two experts", experts=4, epochs=1, save_after=MIDDLE),
            job("two experts resumed", experts=4, epochs=1, checkpoint=middle("two experts")),
            job("two managed", managed_ids=MANAGED, epochs=1, save_after=MIDDLE),
            job("two managed column_wise", managed_ids=MANAGED, epochs=1, sharding="column_wise"),
            job("two managed resumed", managed_ids=MANAGED, epochs=1, checkpoint=middle("two managed")),
            job("two managed from one", managed_ids=MANAGED, epochs=1, checkpoint=middle("one managed")),
            job("two half", storage={"weights": "float16"}, outputs="float16", epochs=1),
            job("two balanced", order={"balance_events": True}),
            job("two background", save_after=MIDDLE, background=True),
            job("two background resumed", checkpoint=middle("two background"), background=True),
            job("two table_wise from row_wise", sharding="table_wise", checkpoint=middle("one")),
        ],
    )
    launch(4, [job("four", save_after=MIDDLE, epochs=1)])
    launch(
        1,
        [
            job("one from two", checkpoint=middle("two")),
            job("one tests two", stage="test", test=True, checkpoint=str(root / "two" / "end.ckpt")),
        ],
    )
    return root


def losses(folder: Path) -> dict[int, float]:
    return {int(step): loss for step, loss in json.loads((folder / "losses.0.json").read_text())["losses"].items()}


def tensors(folder: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint of a run, whole."""
    file = tmp_path / f"{folder.name}.pt"
    dcp_to_torch_save(folder / "end.ckpt", file)
    return torch.load(file, weights_only=True)


def check_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda text, name=name: f"{name}: {text}", **ROUNDING)


def check_bitwise(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def test_lightning_with_fused_tables_equals_a_hand_written_loop(runs, tmp_path):
    assert losses(runs / "one") == pytest.approx(losses(runs / "hand"), rel=1e-5)
    weights = torch.load(runs / "hand" / "weights.pt")
    sharded = {name: value for name, value in tensors(runs / "one", tmp_path).items() if name.startswith("model.")}
    check_close(sharded, weights)


def test_the_loss_falls(runs):
    values = list(losses(runs / "one").values())
    assert np.mean(values[-4:]) < np.mean(values[:4]) - 0.01


def test_one_process_had_an_empty_share(runs):
    shares = [json.loads((runs / "two" / f"losses.{rank}.json").read_text())["shares"] for rank in (0, 1)]
    assert 0 in (*shares[0], *shares[1])
    assert np.sum(shares, axis=0).min() == 1


@pytest.mark.parametrize(
    "name", ["two", "two table_wise", "two column_wise", "two from one", "one from two", "two balanced"]
)
def test_adagrad_in_two_processes_equals_one(runs, tmp_path, name):
    check_close(tensors(runs / name, tmp_path), tensors(runs / "one", tmp_path))
    expected = losses(runs / "one")
    assert losses(runs / name) == pytest.approx(
        {step: loss for step, loss in expected.items() if step in losses(runs / name)}, rel=1e-5
    )


def test_four_processes_equal_one(runs):
    four, one = losses(runs / "four"), losses(runs / "one")
    assert four == pytest.approx({step: one[step] for step in four}, rel=1e-5)
    stored = [StoredTensors(runs / name / "middle.ckpt") for name in ("four", "one")]
    assert max(map(stored[0].pieces, stored[0].names)) == 4
    whole = [{name: each.read(name) for name in each.names} for each in stored]
    check_close(*whole)


def test_a_checkpoint_fits_another_sharding(runs, tmp_path):
    check_close(tensors(runs / "two table_wise from row_wise", tmp_path), tensors(runs / "one", tmp_path))


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise"])
def test_other_table_optimizers_in_two_processes_equal_one(runs, tmp_path, optimizer):
    check_close(tensors(runs / f"two {optimizer}", tmp_path), tensors(runs / f"one {optimizer}", tmp_path))


def test_sparse_experts_in_two_processes_equal_one(runs, tmp_path):
    one, two = tensors(runs / "one experts", tmp_path), tensors(runs / "two experts", tmp_path)
    assert any(name.endswith("activity_2") for name in one)
    check_close(two, one)


def test_half_precision_tables_in_two_processes_equal_one(runs, tmp_path):
    one, two = tensors(runs / "one half", tmp_path), tensors(runs / "two half", tmp_path)
    tables = [name for name in one if ".collections." in name and name.endswith(".weight")]
    assert {one[name].dtype for name in tables} == {torch.float16}
    assert losses(runs / "one half") != losses(runs / "one")
    assert losses(runs / "two half") == pytest.approx(losses(runs / "one half"), rel=2e-3)
    for name, value in one.items():  # float16 has 11 bits, and rounds each update
        torch.testing.assert_close(two[name].float(), value.float(), rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "whole", "same"),
    [
        ("two managed", "one managed", False),
        ("two managed column_wise", "one managed", False),
        ("two managed from one", "one managed", False),
        ("one managed from one", "one managed", True),
        ("two managed resumed", "two managed", True),
    ],
)
def test_managed_ids_are_those_of_one_process_that_was_not_interrupted(runs, tmp_path, name, whole, same):
    actual, expected = tensors(runs / name, tmp_path), tensors(runs / whole, tmp_path)
    (check_bitwise if same else check_close)(actual, expected)
    ids = expected["model.managed_ids.item.map._mch_sorted_raw_ids"]
    assert torch.equal(actual["model.managed_ids.item.map._mch_sorted_raw_ids"], ids)
    assert ids.unique().numel() == MANAGED["item"]["rows"]  # 39 items and the mark of what is free
    (table,) = (value for key, value in expected.items() if key.startswith("model.") and key.endswith("item.weight"))
    assert table.shape[0] == MANAGED["item"]["rows"]


def test_bounded_row_gradients_change_the_run(runs, tmp_path):
    one, clipped = losses(runs / "one"), losses(runs / "one clipped")
    assert clipped[1] == one[1]
    assert clipped[8] != pytest.approx(one[8], rel=1e-5)


def test_checkpoints_written_in_the_background_change_nothing(runs, tmp_path):
    for name in ("middle", "end"):
        a, b = (StoredTensors(runs / run / f"{name}.ckpt") for run in ("two background", "two"))
        assert a.names == b.names
        assert [key for key in a.names if not torch.equal(a.read(key), b.read(key))] == []


@pytest.mark.parametrize(
    ("resumed", "whole"),
    [
        ("one resumed", "one"),
        ("two resumed", "two"),
        ("one again", "one"),
        ("two background resumed", "two"),
        ("two experts resumed", "two experts"),
    ],
)
def test_resumed_in_the_middle_of_an_epoch_is_bitwise_equal(runs, tmp_path, resumed, whole):
    check_bitwise(tensors(runs / resumed, tmp_path), tensors(runs / whole, tmp_path))
    after = losses(runs / resumed)
    assert after == {step: loss for step, loss in losses(runs / whole).items() if step in after}
    assert min(after) == (1 if resumed == "one again" else MIDDLE + 1)


def test_test_metrics_and_predictions_do_not_depend_on_processes(runs):
    one, two, crossed = (runs / name for name in ("one", "two", "one tests two"))
    for name in ("test", "model", "data"):
        a, b = (json.loads((folder / "metrics.json").read_text())[name] for folder in (one, two))
        if name == "test":
            # Rounding in training may swap the logits of a pair of samples, which is 1 / 10,388 of AUC.
            b = {metric: pytest.approx(value, rel=3e-4 if metric == "auc" else 1e-4) for metric, value in b.items()}
        assert a == b
    # From the same weights the metrics agree to the rounding of the logits.
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (two, crossed))
    assert a["test"] == pytest.approx(b["test"], rel=1e-6)
    assert a["validation"] == b["validation"]
    a, b = (pq.read_table(folder / "predictions" / "test.parquet") for folder in (two, crossed))
    assert a["row"].to_pylist() == list(range(len(a)))
    assert a.drop(["probability"]).equals(b.drop(["probability"]))
    np.testing.assert_allclose(a["probability"], b["probability"], rtol=1e-5)
    a, b = (json.loads((folder / "gates.json").read_text()) for folder in (two, crossed))
    assert a["events"] == b["events"] > 0
    assert a["mean"] == pytest.approx(b["mean"], rel=1e-4)
