"""What a run tells its loggers: read from what Weights & Biases and TensorBoard wrote, offline."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from laser.data.fingerprint import fingerprint

ROOT = Path(__file__).parents[2]
TENSORBOARD = "{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: %s}}"
"""The line of the README."""
SCRIPT = """
import json, sys
from pathlib import Path
from laser.cli import main
commands, folder = json.load(sys.stdin)
for arguments in commands:
    code = main(arguments)
    assert code == 0, arguments
    if arguments[0] == "fit":
        sizes = {str(f): f.stat().st_size for f in Path(folder).glob("wandb/offline-run-*/*.wandb")}
        Path(folder, "sizes.json").write_text(json.dumps(sizes))
"""


@pytest.fixture(scope="module")
def run(prepared: Path, tmp_path_factory) -> Path:
    """Folder of a run with three loggers, trained, tested and reported."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    overlay = folder.with_name("loggers.yaml")
    overlay.write_text(f"""
data: {{batch_size: 400, max_history: 12}}
model:
  network:
    init_args: {{width: 16, segment_width: 3, mixer_tokens: 4, mixer_width: 16}}
trainer:
  max_epochs: 1
  log_every_n_steps: 1
  logger:
    - {{class_path: laser.train.loggers.CSVLog}}
    - {{class_path: laser.train.loggers.WandbLog}}
    - {TENSORBOARD % folder}
""")
    recipes = ["-c", str(ROOT / "conf/demo.yaml"), "-c", str(overlay), "--data.path", str(prepared)]
    recipes += ["--trainer.default_root_dir", str(folder)]
    commands = [["fit", *recipes], ["test", *recipes], ["report", str(folder)]]
    launch = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "WANDB_MODE", "PL_GLOBAL_SEED")
    launch += ("WANDB_SERVICE",)  # of this process, if another test has logged something
    environment = {name: value for name, value in os.environ.items() if name not in launch}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([commands, str(folder)]),
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WANDB_RUN_GROUP": "a-study"},
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def stored(data: bytes) -> list[bytes]:
    """Records of an offline file: after 7 bytes, blocks of 32 KiB as in LevelDB's log: CRC, length, type, bytes."""
    place, found, partial = 7, [], b""
    while place + 7 <= len(data):
        if (left := -place % 32768) and left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if place + 7 + length > len(data):
            break
        partial += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            found.append(partial)
            partial = b""
    return found


def records(run: Path) -> dict[str, list]:
    """What the offline files of Weights & Biases hold: by run name, the records."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list] = {}
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        read = [wandb_internal_pb2.Record.FromString(record) for record in stored(file.read_bytes())]
        name = next(record.run.display_name for record in read if record.WhichOneof("record_type") == "run")
        found[name] = read
    return found


def items(updates) -> dict:
    """Values by key; histograms come as their parts."""
    return {"/".join(update.nested_key) or update.key: json.loads(update.value_json) for update in updates}


def test_wandb_knows_configuration_code_data_and_group(run: Path, prepared: Path):
    read = records(run)["run"]
    config: dict = {}
    for record in read:
        kind = record.WhichOneof("record_type")
        if kind == "config":
            config |= items(record.config.update)
        if kind == "run":
            config |= items(record.run.config.update)
            assert record.run.run_group == "a-study"
    assert config["config"]["model"]["network"]["init_args"]["width"] == 16
    assert config["config"]["data"]["batch_size"] == 400
    assert config["data"]["fingerprint"] == fingerprint(prepared)
    assert config["code"]["torch"]
    assert "commit" in config["code"]


def test_wandb_has_metrics_gate_histograms_and_system_metrics(run: Path):
    read = records(run)["run"]
    history = [items(record.history.item) for record in read if record.WhichOneof("record_type") == "history"]
    seen = {name: value for row in history for name, value in row.items()}
    for name in ("train/loss", "val/auc", "gates/mean/head_0"):
        assert isinstance(seen[name], float), name
    assert seen["gates/head_1/_type"] == "histogram"
    assert sum(seen["gates/head_1/values"]) > 0
    assert [record for record in read if record.WhichOneof("record_type") == "stats"], "no system metrics"


def test_a_run_is_written_when_training_ends(run: Path):
    """Not when the process ends: the process that writes may be another's."""
    from wandb.proto import wandb_internal_pb2

    (file, size), *others = json.loads((run / "sizes.json").read_text()).items()
    assert not others
    data = Path(file).read_bytes()
    then, in_the_end = (
        [wandb_internal_pb2.Record.FromString(record).WhichOneof("record_type") for record in stored(part)]
        for part in (data[:size], data)
    )
    assert then.count("history") == in_the_end.count("history") > 2
    assert then.count("artifact") == in_the_end.count("artifact") > 0


def test_wandb_knows_where_checkpoints_are_and_has_the_report(run: Path):
    read = records(run)
    references = {entry.ref for entry in entries(read["run"], "model")}
    for name in ("best.ckpt", "last.ckpt"):
        assert (run / "checkpoints" / name / "facts.json").as_uri() in references
    report = read["run-report"]
    assert {"report.html", "metrics.json", "config.yaml"} <= {entry.path for entry in entries(report, "report")}
    summary = {
        k: v for r in report if r.WhichOneof("record_type") == "summary" for k, v in items(r.summary.update).items()
    }
    assert summary["test/auc"] == json.loads((run / "metrics.json").read_text())["test"]["auc"]


def entries(read: list, kind: str) -> list:
    """Entries of the manifests of a run's artifacts of one type."""
    artifacts = [record.artifact for record in read if record.WhichOneof("record_type") == "artifact"]
    return [entry for artifact in artifacts if artifact.type == kind for entry in artifact.manifest.contents]


def test_another_logger_is_one_line(run: Path):
    line = TENSORBOARD % "runs/mine"
    assert line in (ROOT / "README.md").read_text()
    files = list(run.glob("lightning_logs/**/events.out.tfevents.*"))
    assert files
    content = b"".join(file.read_bytes() for file in files)
    for tag in (b"val/auc", b"gates/head_0", b"train/loss"):
        assert tag in content, tag
    hparams = next(run.glob("lightning_logs/**/hparams.yaml")).read_text()
    assert "fingerprint" in hparams
    assert "batch_size: 400" in hparams
