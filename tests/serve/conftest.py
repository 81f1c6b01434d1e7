"""Small trained models as bundles: trained, predicted and exported by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "conf" / "demo.yaml"
LAUNCH = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LASER_SAID", "PL_GLOBAL_SEED")
OVERLAY = """
data: {{path: {data}, batch_size: 200, evaluation_batch_size: 64, max_history: 12}}
model:
  network:
    class_path: {network}
    init_args: {options}
trainer: {{default_root_dir: {run}, max_epochs: 2, logger: [{{class_path: laser.train.loggers.CSVLog}}],
  enable_progress_bar: false}}
"""
LASER = {"width": 16, "segment_width": 3, "query_width": 4, "mixer_tokens": 4, "mixer_width": 16, "recency_ranks": 16}
LASER |= {"newest_events": 5, "newest_segments": 2}
DIN = {"width": 16, "mixer_tokens": 4, "mixer_width": 16, "recency_ranks": 16, "newest_events": 5}
DIN |= {"encoder": {"class_path": "laser.model.baselines.din.DIN"}}
SCRIPT = """
import json, sys
from laser.cli import main
for arguments in json.load(sys.stdin):
    code = main(arguments)
    assert code == 0, arguments
"""


def run_laser(commands: list[list[str]]) -> None:
    """Run commands of ``laser`` one after another in one process; one that starts others by itself must be alone."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCH}
    done = subprocess.run(
        [sys.executable, "-m", "laser.cli", *commands[0]] if len(commands) == 1 else [sys.executable, "-c", SCRIPT],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        env=kept | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WANDB_MODE": "disabled"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``trained(name) -> folder`` with ``run/`` and ``bundle/``: "laser", "sharded" (by two processes), "din"."""
    made: dict[str, Path] = {}

    def train(name: str) -> Path:
        if name in made:
            return made[name]
        folder = made[name] = tmp_path_factory.mktemp(name)
        network = "baselines.encoder_model.EncoderModel" if name == "din" else "laser.Laser"
        options = json.dumps(DIN if name == "din" else LASER)
        overlay = folder / "overlay.yaml"
        where = {"data": prepared, "run": folder / "run", "network": f"laser.model.{network}", "options": options}
        overlay.write_text(OVERLAY.format(**where))
        recipes = ["-c", str(RECIPE), "-c", str(overlay)]
        fit = ["fit", *recipes, "--trainer.devices", "2" if name == "sharded" else "1"]
        after = [["predict", *recipes], ["export", *recipes, "--out", str(folder / "bundle")]]
        if name == "laser":
            for tables in ("fp16", "int8", "int4"):
                after.append(["export", *recipes, "--out", str(folder / tables), "--tables", tables])
        if name == "sharded":
            run_laser([fit])
            run_laser(after)
        else:
            run_laser([fit, *after])
        return folder

    return train
