"""Training does not depend on Weights & Biases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from laser.train import loggers
from tests.train.wandb_server import Server

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def credentials(monkeypatch, tmp_path):
    """A key, and a server where nobody listens."""
    for name, value in {"API_KEY": "a" * 40, "BASE_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(loggers, "INIT_SECONDS", 3.0)
    monkeypatch.chdir(tmp_path)


def test_a_repeated_validation_has_one_row(tmp_path):
    """As after a checkpoint of the step before a validation; a step's other row is no repetition."""

    def log(first_step: int, rows: list[tuple[int, dict[str, float]]]) -> list[str]:
        csv = loggers.CSVLog(str(tmp_path), first_step=first_step)
        for step, values in rows:
            csv.log_metrics({"epoch": 0, **values}, step=step)
        csv.finalize("success")
        return (tmp_path / "metrics.csv").read_text().splitlines()

    rows = [(3, {"loss": 0.5}), (4, {"loss": 0.25}), (4, {"auc": 0.75}), (5, {"loss": 0.125})]
    whole = log(0, rows)
    assert len(whole) == 5
    assert log(5, rows[2:]) == whole
    assert log(4, rows[1:]) == whole
    assert log(5, rows[3:]) == whole


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mode", [None, "online"])
def test_a_run_goes_on_without_the_network(tmp_path: Path, capfd, mode):
    import wandb

    log = loggers.WandbLog(save_dir=str(tmp_path / "run"), mode=mode)
    log.log_metrics({"loss": 1.0}, step=1)
    log.finalize("success")
    wandb.finish()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert ("cannot be reached" in capfd.readouterr().err) == (mode == "online")


@pytest.fixture
def server(monkeypatch) -> Server:
    """Where runs are logged."""
    import wandb

    wandb.teardown()  # it remembers the address of an earlier run
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    monkeypatch.setattr(loggers, "INIT_SECONDS", 60.0)
    yield server
    wandb.teardown()


@pytest.mark.timeout(150)
def test_a_server_that_is_lost_in_a_run_costs_nothing(tmp_path: Path, server: Server, monkeypatch, capfd):
    monkeypatch.setattr(loggers, "FINISH_SECONDS", 3.0)
    log = loggers.WandbLog(save_dir=str(tmp_path / "run"), mode="online")
    log.log_metrics({"loss": 0.5}, step=0)
    end = time.monotonic() + 60
    while not server.rows and time.monotonic() < end:
        time.sleep(0.1)
    assert [row["loss"] for row in server.rows] == [0.5]
    server.go_away()
    for step in range(1, 50):
        log.log_metrics({"loss": step}, step=step)
    log.finalize("success")
    (folder,) = (tmp_path / "run" / "wandb").glob("run-*")
    assert f"hand it over later with wandb sync --include-online {folder}" in capfd.readouterr().err
    later = Server()
    environment = os.environ | {"WANDB_BASE_URL": later.address}
    wandb = [sys.executable, "-m", "wandb", "sync", "--include-online", str(folder)]
    done = subprocess.run(wandb, env=environment, capture_output=True, text=True, timeout=100)
    later.go_away()
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["loss"] for row in later.rows] == [0.5, *range(1, 50)]


@pytest.mark.timeout(60)
def test_training_outlives_the_process_that_writes_for_wandb(tmp_path: Path, capfd, monkeypatch):
    import wandb

    log = loggers.WandbLog(save_dir=str(tmp_path / "run"))
    log.log_metrics({"loss": 1.0}, step=1)
    children = [int(child) for file in Path("/proc/self/task").glob("*/children") for child in file.read_text().split()]
    (writer,) = (child for child in children if "wandb-core" in Path(f"/proc/{child}/cmdline").read_text())
    os.kill(writer, signal.SIGKILL)
    end = time.monotonic() + 20
    while "was lost" not in (said := capfd.readouterr().err) and time.monotonic() < end:
        log.log_metrics({"loss": 1.0}, step=2)
        time.sleep(0.1)
    assert "laser: Weights & Biases was lost" in said
    log.log_metrics({"loss": 1.0}, step=3)
    log.finalize("success")
    assert not capfd.readouterr().err
    with suppress(OSError, wandb.errors.Error):
        wandb.teardown()  # later tests start a process of their own
    monkeypatch.delenv("WANDB_SERVICE", raising=False)


BARE = """
import importlib.metadata, json, sys
sys.modules["wandb"] = None
found = importlib.metadata.version
def version(name):
    if name == "laser-ctr":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version
from laser.cli import main
sys.exit(main(json.load(sys.stdin)))
"""
"""A process without the package wandb, in which the project is not installed."""


@pytest.mark.timeout(120)
def test_a_run_goes_on_without_wandb_and_without_an_installation(prepared: Path, tmp_path: Path):
    recipes = ["-c", str(ROOT / "conf/demo.yaml"), "--data.path", str(prepared)]
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    launch = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
    done = subprocess.run(
        [sys.executable, "-c", BARE],
        input=json.dumps(["fit", *recipes, *short, "--trainer.default_root_dir", str(tmp_path / "run")]),
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in launch},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("the package wandb is not installed") == 1
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") > 1
    assert not list(tmp_path.glob("**/wandb*"))
    (facts,) = (tmp_path / "run" / "checkpoints").glob("best.ckpt/facts.json")
    assert json.loads(facts.read_text())["versions"]["laser-ctr"] == "unknown"
