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
        "trainer.logger": [{"class_path": "laser.train.loggers.CSVLog"}],
    },
}


@pytest.fixture(scope="session")
def tiny(prepared: Path) -> dict:
    """Content of the study's file, to be changed by a copy."""
    return {**TINY, "options": {**TINY["options"], "data.path": str(prepared)}}


@pytest.fixture(scope="session")
def write_study_yaml():
    """``write_study_yaml(folder, content) -> Path`` of the file."""

    def write(folder: Path, content: dict) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{content['name']}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="session")
def start():
    """``start(*arguments) -> Popen`` of ``laser study``, from the repository's root."""

    def run(*arguments: str | Path) -> subprocess.Popen:
        launch = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LASER_SAID", "PL_GLOBAL_SEED")
        kept = {name: value for name, value in os.environ.items() if name not in launch}
        environment = kept | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        line = [sys.executable, "-m", "laser.cli", "study", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, env=environment, cwd=ROOT, **pipes)

    return run


@pytest.fixture(scope="session")
def study(start):
    """``study(*arguments) -> (exit code, stdout, stderr)``."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=300)
            except subprocess.TimeoutExpired:
                process.kill()  # its workers end with it
                raise
        return process.returncode, out, err

    return run
