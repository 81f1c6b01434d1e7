"""Weights of one run as the beginning of another, whose tables have other names and numbers of rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from laser.train.stored_tensors import StoredTensors

TABLES = "model.network.embeddings.collections.width_8.embeddings"
LAUNCH = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LASER_SAID", "PL_GLOBAL_SEED")


@pytest.fixture(scope="module")
def wider(make_prepared: Callable[..., Path]) -> Path:
    """A data set of more items than ``prepared``, whose tags look up a table of another name."""
    path = make_prepared(items=120)
    schema = json.loads((path / "schema.json").read_text())
    for feature in schema["features"]:
        if feature.get("table") == "tag":
            feature["table"] = "label"
    (path / "schema.json").write_text(json.dumps(schema))
    return path


@pytest.fixture(scope="module")
def runs(launch: Callable, prepared: Path, wider: Path, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")

    def job(name: str, data: Path, **options) -> dict:
        return {"folder": str(root / name), "data": str(data), "batch_size": 400, **options}

    def warm(name: str, data: Path, **options) -> dict:
        start = {"checkpoint": str(root / "first" / "end.ckpt"), **options}
        return job(name, data, stage="warm start", warm_start=start)

    launch(1, [job("first", prepared, epochs=1)])
    launch(
        2,
        [
            warm("same", prepared),
            warm("wider", wider, tables={"label": "tag", "rating": None}),
            warm("tables only", wider, dense=False),
            warm("column_wise", wider, tables={"label": "tag"}) | {"sharding": "column_wise"},
        ],
    )
    return root


def outcome(folder: Path) -> dict:
    return json.loads((folder / "warm_start.json").read_text())


def test_the_same_model_is_loaded_whole(runs):
    first, same = (StoredTensors(runs / name / "end.ckpt") for name in ("first", "same"))
    weights = [name for name in first.names if name.startswith("model.")]
    told = outcome(runs / "same")
    assert (told["partly"], told["initial"], told["unused"]) == ({}, {}, [])
    assert sorted(told["loaded"]) == weights
    assert [name for name in weights if not torch.equal(first.read(name), same.read(name))] == []


@pytest.mark.parametrize("name", ["wider", "column_wise"])
def test_more_rows_and_other_names(runs, name):
    first, new = (StoredTensors(runs / folder / "end.ckpt") for folder in ("first", name))
    before, after = (stored.read(f"{TABLES}.item.weight") for stored in (first, new))
    rows = len(before)
    assert torch.equal(after[:rows], before)
    assert (after[rows:] != 0).any()
    assert after[rows:].std() == pytest.approx(0.02, rel=0.3)  # initial values
    assert torch.equal(new.read(f"{TABLES}.label.weight"), first.read(f"{TABLES}.tag.weight"))
    told = outcome(runs / name)
    assert told["partly"] == {f"{TABLES}.item.weight": {"loaded": 81, "rows": 121, "in_checkpoint": 81}}
    if name == "wider":
        assert told["initial"] == {f"{TABLES}.rating.weight": "not asked for"}
        assert told["unused"] == [f"{TABLES}.rating.weight"]
        assert not torch.equal(new.read(f"{TABLES}.rating.weight"), first.read(f"{TABLES}.rating.weight"))


def test_tables_without_the_rest(runs):
    first, new = (StoredTensors(runs / folder / "end.ckpt") for folder in ("first", "tables only"))
    told = outcome(runs / "tables only")
    assert {name for name, why in told["initial"].items() if why == "not in the checkpoint"} == {
        f"{TABLES}.label.weight"
    }
    assert all(name.startswith(TABLES) for name in (*told["loaded"], *told["partly"]))
    name = "model.network.target.weight"
    assert told["initial"][name] == "not asked for"
    assert not torch.equal(first.read(name), new.read(name))


def test_on_the_command_line(runs, wider, tmp_path):
    recipe = Path(__file__).parents[2] / "conf" / "demo.yaml"
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(f"""
data: {{path: {wider}, batch_size: 400, max_history: 12}}
model: {{warm_start: {{checkpoint: {runs / "first" / "end.ckpt"}, tables: {{label: tag}}}}}}
trainer: {{default_root_dir: {tmp_path / "run"}, max_steps: 1, limit_val_batches: 1, logger: false, callbacks: []}}
""")
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCH}

    def laser(verb: str, *options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "laser.cli", verb, "-c", str(recipe), "-c", str(overlay), *options]
        environment = kept | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)

    done = laser("fit")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 in part (item: 81 of 121 rows)" in done.stdout
    assert outcome(tmp_path / "run")["partly"]
    done = laser("fit", "--model.warm_start.tables", "{colour: tag}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "names table 'colour', but this run has category, device, item, label, rating" in done.stderr
    done = laser("test", "--ckpt_path", "warm_start")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["samples"] > 0
