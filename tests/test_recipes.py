"""Every recipe in conf/ is loaded and takes a training, a validation and a test step on small data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from laser.batch import Batch
from laser.data.loader import BatchLoader
from laser.data.prepared import PreparedData
from laser.schema import Schema
from laser.study.design import read_study
from laser.study.runs import make_run
from laser.train.datamodule import CTRDataModule
from laser.train.module import CTRModule

CONF = Path(__file__).parents[1] / "conf"
RECIPES = sorted(CONF.glob("*.yaml"))
COMPLETE = [path for path in RECIPES if {"model", "trainer"} <= set(yaml.safe_load(path.read_text()))]
NOT_HERE = {
    "assistments_matched": "'problem' is no embedded field of the history",
    "assistments_best": "embedding tables on the CPU cannot be trained with adam",
}
"""Overlays that name fields of their data set or need a GPU, and how they say so."""
ABLATIONS = sorted((CONF / "ablations").glob("*.yaml"))
SCRIPT = """
import json, sys
from laser.cli import main
for arguments in json.load(sys.stdin):
    code = main(arguments)
    assert code == 0, arguments
"""


def recipe_options(path: Path) -> list[str]:
    """``-c`` options of a recipe; an overlay follows the complete recipe whose name begins its own."""
    if path in COMPLETE:
        return ["-c", str(path)]
    bases = [base for base in COMPLETE if path.stem.startswith(base.stem)]
    assert bases, f"{path.name} is an overlay; name it after the recipe that it goes over"
    return ["-c", str(max(bases, key=lambda base: len(base.stem))), "-c", str(path)]


def fit_and_test(recipes: list[str], prepared: Path, tmp_path: Path) -> str:
    """One step of training, validation and test; what was printed."""
    small = ["--data.path", str(prepared), "--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps", "1"]
    small += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.limit_val_batches", "1"]
    small += ["--trainer.limit_train_batches", "1"]
    commands = [[verb, *recipes, *small] for verb in ("fit", "test")]
    launch = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "WANDB_MODE", "PL_GLOBAL_SEED")
    environment = {name: value for name, value in os.environ.items() if name not in launch}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipe_trains(path, prepared, tmp_path):
    if (expected := NOT_HERE.get(path.stem)) is not None:
        with pytest.raises(AssertionError, match=expected):
            fit_and_test(recipe_options(path), prepared, tmp_path)
        return
    assert "not used" not in fit_and_test(recipe_options(path), prepared, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["test"]["samples"] > 0


def test_a_baseline_over_a_recipe_is_named_and_what_it_lacks_is_said(prepared, tmp_path):
    recipes = ["-c", str(CONF / "demo.yaml"), "-c", str(CONF / "baselines" / "sim.yaml")]
    said = fit_and_test([*recipes, "--trainer.log_every_n_steps", "1"], prepared, tmp_path)
    assert "laser fit: EncoderModel has no segment_width, which a recipe under the overlay sets: not used" in said
    model = json.loads((tmp_path / "metrics.json").read_text())["model"]
    assert (model["class"], model["encoder"]) == ("EncoderModel", "SIM")
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/auxiliary_loss"} <= set(header)


@pytest.fixture(scope="module")
def one_batch(prepared) -> tuple[Schema, Batch]:
    with PreparedData(prepared) as data:
        loader = BatchLoader(data, "train", batch_size=9, max_history=30, shuffle=False, seed=0, workers=0)
        return data.schema, next(iter(loader))


def parser_of_recipes() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("-c", action=ActionConfigFile)
    parser.add_class_arguments(CTRModule, "model")
    parser.add_class_arguments(CTRDataModule, "data", instantiate=False)
    parser.add_argument("--trainer", type=dict)
    parser.add_argument("--seed_everything", type=int)
    return parser


def network_of(schema: Schema, *recipes: Path) -> tuple[torch.nn.Module, dict]:
    """The network that recipes ask for, one over the other, and all options."""
    parser = parser_of_recipes()
    found = parser.parse_args([part for path in recipes for part in ("-c", str(path))])
    network = parser.instantiate_classes(found).model.build_network(schema, seed=3)
    return network, {"data": found.data.as_dict(), "network": found.model.network.init_args.as_dict()}


def test_the_best_recipe_is_what_the_study_chose(monkeypatch):
    monkeypatch.chdir(CONF.parent)  # where a study's recipes are
    study = read_study(CONF / "study" / "assistments.yaml")
    run = make_run(study, "laser_matched_lean_windows", "L1000", 1, 0)
    best = ["-c", "conf/assistments.yaml", "-c", "conf/assistments_best.yaml"]
    ours, chosen = (parser_of_recipes().parse_args(arguments).model for arguments in (best, run.arguments()))
    assert ours == chosen


@pytest.mark.parametrize("path", ABLATIONS, ids=[path.stem for path in ABLATIONS])
def test_ablation_changes_what_it_says_and_nothing_else(path, one_batch):
    schema, batch = one_batch
    base = CONF / "demo.yaml"
    (network, ablated), (_, whole) = network_of(schema, base, path), network_of(schema, base)
    assert network(batch).logit_B.isfinite().all()
    wanted = yaml.safe_load(path.read_text())
    options = wanted["model"]["network"]["init_args"] if "model" in wanted else {}
    assert options or wanted["data"]
    assert ablated["network"] == whole["network"] | options
    assert ablated["data"] == whole["data"] | wanted.get("data", {})
