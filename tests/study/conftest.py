"""A study of seconds: two models, two settings, two seeds, two trials, on synthetic data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TINY = {
    "name": "tiny",
    "title": "A tiny study",
    "recipes": [str(ROOT / "conf/demo.yaml")],
    "subject": "laser",
    "seeds": [0, 1],
    "models": {
        "laser": {"label": "LASER", "options": {"model.network.init_args.segment_width": 3}},
        "din": {"label": "DIN", "recipes": [str(ROOT / "conf/baselines/din.yaml")]},
    },
    "options": {
        "data.max_history": 12,
        "data.batch_size": 400,
        "model.network.init_args.width": 16,
        "model.network.init_args.mixer_tokens": 4,
        "model.network.init_args.mixer_width": 16,
        "model.warm_up_steps": 2,
        "trainer.max_epochs": 2,
        "trainer.logger": False,
        "trainer.callbacks": [
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"filename": "best", "monitor": "val/auc", "mode": "max", "save_last": True},
            }
        ],
    },
}


@pytest.fixture(scope="session")
def tiny(prepared: Path) -> dict:
    """Content of the study's file, to be changed by a copy."""
    logger = [{"class_path": "laser.train.loggers.CSVLog"}]
    return {**TINY, "options": {**TINY["options"], "trainer.logger": logger, "data.path": str(prepared)}}


def write_study(folder: Path, content: dict) -> Path:
    """Write a study's file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def command(*arguments: str | Path) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of ``laser study``."""
    launch = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LASER_SAID", "PL_GLOBAL_SEED")
    kept = {name: value for name, value in os.environ.items() if name not in launch}
    environment = kept | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return [sys.executable, "-m", "laser.cli", "study", *map(str, arguments)], environment


@pytest.fixture(scope="session")
def study():
    """``study(*arguments) -> CompletedProcess`` of ``laser study``, from the repository's root."""

    def run(*arguments: str | Path, timeout: float = 250) -> subprocess.CompletedProcess:
        line, environment = command(*arguments)
        return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=timeout)

    return run
