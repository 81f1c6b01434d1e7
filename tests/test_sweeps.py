"""Sweeps in conf/sweeps/ name options that exist, and their command is what an agent would run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "conf" / "sweeps").glob("*.yaml"))


def first(parameter: dict) -> object:
    """A value that the sweep may choose."""
    return parameter["values"][0] if "values" in parameter else parameter["min"]


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_a_sweep_runs_what_it_says(path, prepared, tmp_path):
    sweep = yaml.safe_load(path.read_text())
    assert sweep["metric"] == {"name": "val/auc", "goal": "maximize"}
    chosen = {name: first(parameter) for name, parameter in sweep["parameters"].items()}
    arguments = [f"--{name}={value}" for name, value in chosen.items()]
    command = [part for word in sweep["command"] for part in (arguments if word == "${args}" else [word])]
    (tmp_path / "laser").write_text(f'#!/bin/sh\nexec {sys.executable} -m laser.cli "$@"\n')
    (tmp_path / "laser").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WANDB_RUN_ID": "run7"}
    command += [f"--data.path={prepared}", "--print_config"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | variables, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["trainer"]["default_root_dir"] == "runs/sweep/run7"
    for name, value in chosen.items():
        found = config
        for key in name.split("."):
            found = found[key]
        assert found == value, name


def test_under_an_agent_runs_are_online(tmp_path, monkeypatch):
    from laser.train.loggers import WandbLog

    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert WandbLog(save_dir=str(tmp_path))._wandb_init["mode"] == "offline"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert WandbLog(save_dir=str(tmp_path))._wandb_init["mode"] == "online"
