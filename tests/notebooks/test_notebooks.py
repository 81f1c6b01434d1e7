"""Every notebook runs on the bundled data with models trained for seconds, and becomes a page by itself."""

from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = ROOT / "docs" / "notebooks"
ALL = """
data: {batch_size: 256, evaluation_batch_size: 512, max_history: 60, workers: 0}
model:
  network:
    class_path: laser.model.laser.Laser
    init_args: {width: 16, mixer_tokens: 4, mixer_width: 16}
  warm_up_steps: 5
trainer:
  max_steps: 40
  max_epochs: 1
  val_check_interval: 40
  limit_val_batches: 2
  enable_progress_bar: false
  logger: [{class_path: laser.train.loggers.CSVLog}]
"""
ALL = """
import json, sys
from data_prep.cli import main as prepare
from laser.cli import main
prepared, *rest = json.load(sys.stdin)
assert not prepare(prepared)
for arguments in rest:
    assert main(arguments) == 0, arguments
"""
"""One process: importing torch takes most of the time."""


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the notebooks find the data, a run with sigmoid gates, and one with softmax."""
    root = tmp_path_factory.mktemp("notebooks")
    data = root / "movielens_small"
    commands = [["run", str(ROOT / "conf/prep/movielens_small.yaml"), "--out", str(data)]]
    for gate in ("sigmoid", "softmax"):
        options = ["-c", str(ROOT / "conf/demo.yaml"), "-c", str(ROOT / "notebooks/small.yaml")]
        options += ["--data.path", str(data), "--trainer.enable_progress_bar", "false"]
        options += ["--trainer.max_steps", "30", "--trainer.val_check_interval", "30"]
        options += ["--model.network.init_args.gate", gate, "--trainer.default_root_dir", str(root / gate)]
        commands += [["fit", *options], ["test", *options, "--gates"]]
    launch = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LASER_SAID", "PL_GLOBAL_SEED")
    kept = {name: value for name, value in os.environ.items() if name not in launch}
    kept |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "-c", ALL], input=json.dumps(commands), capture_output=True, text=True, env=kept, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {"LASER_DATA": data, "LASER_RUN": root / "sigmoid", "LASER_SOFTMAX_RUN": root / "softmax"}
    return {name: str(path) for name, path in found.items()} | {"LASER_SAMPLES": "60"}


@pytest.fixture(scope="session")
def render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("laser_render", ROOT / "notebooks" / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_runs_and_becomes_a_page(
    path: Path, environment: dict[str, str], render: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = render.run(path)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    calls = sum(cell.source.count("figures.") for cell in notebook.cells if cell.cell_type == "code")
    assert pictures
    assert len(pictures) == calls
    text = render.page(notebook)
    assert text.count("<img") == len(pictures)
    assert not re.findall(r"<(?:script|link)[^>]*(?:src|href)", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_kept_without_output_and_without_logic(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.cell_type == "markdown" or not re.search(r"^(def|class|for|while|if) ", cell.source, re.MULTILINE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_its_page_is_there_and_small(path: Path) -> None:
    page = PAGES / f"{path.stem}.html"
    assert 20_000 < page.stat().st_size < 1_500_000
    code = [cell.source.splitlines()[0] for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    text = html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))
    missing = [line for line in code if line not in text]
    assert not missing, "make notebooks writes the pages again"


def test_a_missing_run_is_said_in_one_line(render: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('raise ValueError("no gates here")')])
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    assert render.main(tmp_path, [tmp_path / "broken.ipynb"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("no gates here")
    assert not (tmp_path / "broken.html").exists()
