"""The console script: mistakes end in one sentence and exit code 2; the same command twice gives the same numbers."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import google_crc32c
import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment

from laser.train.command_line import quieten

LASER = str(Path(sys.executable).with_name("laser"))
RECIPE = str(Path(__file__).parents[1] / "conf" / "demo.yaml")
SMALL = """
data: {batch_size: 400, evaluation_batch_size: 400, max_history: 12}
model:
  network:
    class_path: laser.model.laser.Laser
    init_args: {width: 16, segment_width: 3, mixer_tokens: 4, mixer_width: 16}
  warm_up_steps: 2
trainer: {max_epochs: 2, log_every_n_steps: 1, logger: [{class_path: laser.train.loggers.CSVLog}]}
"""
MANY = """
import contextlib, io, json, sys
from laser.cli import main
import torch.distributed as dist
outcomes = []
for arguments in json.load(sys.stdin):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = main(arguments)
    outcomes.append([code, errors.getvalue()])
    if dist.is_initialized():
        dist.destroy_process_group()
json.dump(outcomes, sys.stdout)
"""
"""Runs many commands in one process, as importing torch takes most of a mistake's time."""


def environment() -> dict[str, str]:
    launch = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LASER_SAID", "PL_GLOBAL_SEED")
    kept = {name: value for name, value in os.environ.items() if name not in launch}
    return kept | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def laser(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [LASER, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=cwd, timeout=200)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> list[str]:
    """Arguments of a run of seconds: the demo's recipe with a small overlay and data set."""
    overlay = tmp_path_factory.mktemp("recipes") / "small.yaml"
    overlay.write_text(SMALL)
    return ["-c", RECIPE, "-c", str(overlay), "--data.path", str(prepared)]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    """Two folders of the same commands, and one of two processes."""
    root = tmp_path_factory.mktemp("runs")
    for name, processes in (("first", 1), ("second", 1), ("two", 2)):
        for verb in ("fit", "test"):
            options = ["--trainer.default_root_dir", str(root / name), "--trainer.devices", str(processes)]
            options += ["--profile", "3"] if name == "two" and verb == "fit" else []
            options += ["--gates"] if name != "second" and verb == "test" else []
            done = laser(verb, *small, *options)
            assert done.returncode == 0, done.stderr[-3000:]
    return root


def test_same_command_twice_gives_the_same_files(runs):
    for name in ("metrics.json", "gates.json", "metrics.csv"):
        assert (runs / "first" / name).read_bytes() == (runs / "second" / name).read_bytes(), name


def test_every_process_tells_how_it_fared(runs):
    ranks = json.loads((runs / "two" / "ranks.json").read_text())["ranks"]
    assert len(ranks) == 2
    assert ranks[0]["steps"] == ranks[1]["steps"] > 0
    assert sum(rank["samples"] for rank in ranks) == pytest.approx(
        json.loads((runs / "first" / "ranks.json").read_text())["ranks"][0]["samples"]
    )
    for rank in ranks:
        assert 0 < rank["waiting_milliseconds"] < rank["milliseconds"]
        assert 0 < rank["look_up_milliseconds"] < rank["milliseconds"]
        assert rank["peak_memory_bytes"] > 1e8
    for number, rank in enumerate(ranks):
        *_, last = csv.DictReader((runs / "two" / "ranks" / f"{number}.csv").open())
        assert float(last["samples"]) == pytest.approx(rank["samples"], rel=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_profile_names_parts_of_the_step(runs, rank):
    folder = runs / "two" / "profile"
    names = {event.get("name") for event in json.loads((folder / f"trace.{rank}.json").read_text())["traceEvents"]}
    summary = (folder / f"summary.{rank}.txt").read_text()
    assert summary.startswith("3 training steps")
    for region in ("embeddings", "sta", "mixer", "backward", "dense_optimizer", "between_steps"):
        assert f"laser::{region}" in names
        milliseconds = [float(line.split()[0]) for line in summary.splitlines() if line.endswith(f"  {region}")]
        assert len(milliseconds) == 1
        assert milliseconds[0] > 0
    assert "gloo:all_to_all" in summary


def test_two_processes_give_the_same_metrics_to_rounding(runs):
    one, two = (json.loads((runs / name / "metrics.json").read_text()) for name in ("first", "two"))
    assert one["test"] == pytest.approx(two["test"], rel=1e-4)
    assert one["validation"] == pytest.approx(two["validation"], rel=1e-4)
    assert {name: one[name] for name in ("model", "data")} == {name: two[name] for name in ("model", "data")}


def test_a_run_leaves_its_files(runs):
    expected = [
        "config.yaml",
        "metrics.csv",
        "metrics.json",
        "gates.json",
        "throughput.json",
        "predictions/test.parquet",
    ]
    for name in (*expected, "checkpoints/best.ckpt/facts.json", "checkpoints/last.ckpt/facts.json"):
        assert (runs / "first" / name).exists(), name
    assert not list((runs / "first").rglob("*.tmp"))
    written = sorted(path.name for path in (runs / "two" / "predictions").iterdir())
    assert written == ["test.parquet", "test_gates.parquet"]


def test_gates_of_every_event_whatever_the_processes(runs, prepared):
    import numpy as np
    import pyarrow.parquet as pq

    from laser.data.prepared import PreparedData
    from laser.data.segmented import segmented_histories

    one, two = (pq.read_table(runs / name / "predictions" / "test_gates.parquet") for name in ("first", "two"))
    predictions = pq.read_table(runs / "first" / "predictions" / "test.parquet")
    assert one.select(predictions.column_names) == predictions
    exact = [name for name in one.column_names if not name.startswith("gates") and name != "probability"]
    assert one.select(exact) == two.select(exact)
    with PreparedData(prepared) as data:
        user, time = one["user"].to_numpy(), one["timestamp"].to_numpy()
        seen = segmented_histories(data, user, time, width=3, max_history=12)
        whole = segmented_histories(data, user, time, width=3)
    assert one["earlier_events"].to_pylist() == np.diff(whole.off_R1).tolist()
    assert one["history_length"].to_pylist() == np.diff(seen.off_R1).tolist()
    for name in ("item", "rating"):
        assert np.array_equal(one[f"event_{name}"].combine_chunks().flatten(), seen.values[name])
    times = np.repeat(time, np.diff(seen.off_R1)) - seen.values["timestamp"]
    assert np.array_equal(one["age_seconds"].combine_chunks().flatten(), times)
    assert one["segment_ends"][-1].as_py()[-1] == one["history_length"][-1].as_py()
    gates = [np.stack([t[f"gates_{h}"].combine_chunks().flatten() for h in (0, 1)]) for t in (one, two)]
    np.testing.assert_allclose(*gates, atol=2e-3)
    statistics = json.loads((runs / "first" / "gates.json").read_text())
    np.testing.assert_allclose(gates[0].astype(float).mean(1), statistics["mean"], rtol=1e-3)


def test_a_resumed_run_continues_its_metrics(runs, small, tmp_path):
    folder = tmp_path / "resumed"
    shutil.copytree(runs / "first", folder)
    options = ["--trainer.default_root_dir", folder, "--trainer.max_epochs", "3", "--ckpt_path", "last"]
    assert laser("fit", *small, *options).returncode == 0
    before = (runs / "first" / "metrics.csv").read_text().splitlines()
    after = (folder / "metrics.csv").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == 1 + (len(before) - 1) * 3 // 2


def test_predict_and_validate(runs, small, prepared):
    import pyarrow.parquet as pq

    folder = runs / "first"
    before = (folder / "metrics.csv").read_bytes()
    options = ["--trainer.default_root_dir", folder, "--data.predict_split", "val"]
    assert laser("predict", *small, *options).returncode == 0
    table = pq.read_table(folder / "predictions" / "val.parquet")
    names = ["row", "user", "item", "timestamp", "label", "probability", "history_length", "earlier_events"]
    assert table.column_names == names
    source = pq.read_table(prepared / "samples" / "val")
    for name, column in (("user", "user"), ("item", "item"), ("timestamp", "timestamp"), ("label", "click")):
        assert table[name].to_pylist() == source[column].to_pylist(), name
    assert all(0 < p < 1 for p in table["probability"].to_pylist())
    assert (folder / "metrics.csv").read_bytes() == before


def test_the_network_of_a_run_of_two_processes_is_loaded_by_one(runs, prepared):
    import numpy as np
    import pyarrow.parquet as pq

    from laser.data.prepared import PreparedData
    from laser.train.masking import masked_predictions

    with PreparedData(prepared) as data:
        found = masked_predictions(runs / "two", data, samples=50)
    predictions = pq.read_table(runs / "two" / "predictions" / "test.parquet")
    probability = predictions["probability"].to_numpy()[found["row"]]
    np.testing.assert_allclose(1 / (1 + np.exp(-found["logit"])), probability, atol=1e-5)


@pytest.fixture(scope="session")
def mistakes(runs: Path, small: list[str], prepared: Path, tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit code and stderr of many mistakes by name."""
    root = tmp_path_factory.mktemp("mistakes")
    (root / "empty.yaml").touch()
    (root / "unknown.yaml").write_text("trainer: {max_epoch: 3}")
    (root / "broken.yaml").write_text("trainer: [1,")
    other = root / "other version"
    shutil.copytree(prepared, other)
    (other / "schema.json").write_text((prepared / "schema.json").read_text().replace('"version": 1', '"version": 9'))
    changed = root / "changed"
    shutil.copytree(prepared, changed)
    schema = json.loads((prepared / "schema.json").read_text())
    (changed / "schema.json").write_text(json.dumps(schema | {"name": "renamed"}))
    truncated = root / "truncated"
    shutil.copytree(prepared, truncated)
    part = next((truncated / "samples" / "train").iterdir())
    part.write_bytes(part.read_bytes()[:-100])
    damaged = root / "damaged.ckpt"
    shutil.copytree(runs / "first" / "checkpoints" / "best.ckpt", damaged)
    (damaged / ".metadata").write_bytes(b"cos\nsystem\n(S'touch " + bytes(root / "pwned") + b"'\ntR.")
    facts = json.loads((damaged / "facts.json").read_text())
    facts["checksums"][".metadata"] = google_crc32c.value((damaged / ".metadata").read_bytes())
    (damaged / "facts.json").write_text(json.dumps(facts))

    run = ["--trainer.default_root_dir", str(root / "run")]
    first = ["--trainer.default_root_dir", str(runs / "first")]
    commands = {
        "verb": ["train"],
        "recipe": ["fit", "-c", str(root / "none.yaml")],
        "broken recipe": ["fit", *small, "-c", str(root / "broken.yaml")],
        "empty recipe": ["fit", *small, "-c", str(root / "empty.yaml")],
        "unknown key": ["fit", *small, "-c", str(root / "unknown.yaml")],
        "unknown option": ["fit", *small, "--trainer.max_epoch", "3"],
        "unknown model option": ["fit", *small, "--model.network.init_args.breadth", "3"],
        "type": ["fit", *small, "--data.batch_size", "many"],
        "model type": ["fit", *small, "--model.network.init_args.width", "wide"],
        "run is a file": ["fit", *small, "--trainer.default_root_dir", str(root / "empty.yaml")],
        "run in a file": ["fit", *small, "--trainer.default_root_dir", str(root / "empty.yaml" / "run")],
        "choice": ["fit", *small, "--model.network.init_args.head", "big"],
        "nothing": ["fit", *small, "--data.max_history", "null"],
        "number or nothing": ["fit", *small, "--model.network.init_args.gate_bias", "high"],
        "choice or nothing": ["export", *small, "--out", str(root / "bundle"), "--compile", "tpu"],
        "many types": ["fit", *small, "--trainer.limit_val_batches", "no"],
        "class": ["fit", *small, "--model.network", "laser.model.none.Thing"],
        "option of a word": ["fit", *small, "--trainer.strategy.sharding.default", "row_wise"],
        "trainer": ["fit", *small, *run, "--trainer.accelerator", "mps"],
        "gates": ["fit", *small, "--gates"],
        "range": ["fit", *small, "--data.batch_size", "0"],
        "data path": ["fit", *small, "--data.path", str(root / "nowhere")],
        "schema version": ["fit", *small, "--data.path", str(other)],
        "truncated": ["fit", *small, *run, "--data.path", str(truncated)],
        "precision": ["fit", *small, *run, "--trainer.precision", "bf16-true"],
        "accumulation": ["fit", *small, *run, "--trainer.accumulate_grad_batches", "2"],
        "adam": ["fit", *small, *run, "--model.table_optimizer.name", "adam"],
        "strategy": ["fit", *small, *run, "--trainer.strategy", "ddp"],
        "sizes": ["fit", *small, *run, "--model.network.init_args.mixer_tokens", "5"],
        "no checkpoint": ["test", *small, *run],
        "other data": ["test", *small, *first, "--data.path", str(changed)],
        "other network": ["test", *small, *first, "--model.network.init_args.width", "32"],
        "other optimizer": ["fit", *small, *first, "--ckpt_path", "last", "--model.table_optimizer.name", "sgd"],
        "damaged": ["test", *small, *run, "--ckpt_path", str(damaged)],
        "an empty file": ["test", *small, *run, "--ckpt_path", str(root / "empty.yaml")],
        "no run": ["report", str(root / "nothing")],
        "results in a file": [
            "study",
            str(Path(RECIPE).parent / "study" / "components.yaml"),
            "--out",
            str(root / "empty.yaml"),
        ],
    }
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        input=json.dumps(list(commands.values())),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (root / "pwned").exists(), "loading a checkpoint ran code"
    outcomes = json.loads(done.stdout[done.stdout.index("[[") :])
    return dict(zip(commands, map(tuple, outcomes), strict=True))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("verb", ["'train'", "fit"]),
        ("recipe", ["none.yaml"]),
        ("broken recipe", ["line"]),
        ("empty recipe", ["empty", "conf/demo.yaml"]),
        ("unknown key", ["max_epoch"]),
        ("unknown option", ["max_epoch"]),
        ("unknown model option", ["model.network has no option 'breadth'"]),
        ("type", ["batch_size", "many"]),
        ("model type", ["model.network.width", "int", "wide"]),
        ("run is a file", ["trainer.default_root_dir", "empty.yaml", "File exists", "give another"]),
        ("run in a file", ["trainer.default_root_dir", "empty.yaml/run", "Not a directory", "give another"]),
        ("choice", ["model.network.head is big; expected 'rankmixer' or 'tokenmixer_large' or 'dcnv2' or 'final_mlp'"]),
        ("nothing", ["data.max_history is None; expected int"]),
        ("number or nothing", ["model.network.gate_bias is high; expected float or null"]),
        ("choice or nothing", ["compile is tpu; expected 'cpu' or 'cuda' or null"]),
        ("many types", ["trainer.limit_val_batches is no; expected int or float or null"]),
        ("class", ["model.network is laser.model.none.Thing, which cannot be imported"]),
        ("option of a word", ["trainer.strategy is a word", "'sharding.default'", "class_path"]),
        ("trainer", ["MPS"]),
        ("gates", ["--gates", "laser test", "laser fit"]),
        ("range", ["batch_size", "0", "at least 1"]),
        ("data path", ["nowhere", "laser-prep"]),
        ("schema version", ["version 9", "version 1"]),
        ("truncated", ["part-"]),
        ("precision", ["bf16-true", "bf16-mixed"]),
        ("accumulation", ["accumulate_grad_batches is 2", "batch_size"]),
        ("adam", ["adam", "adagrad"]),
        ("strategy", ["DDPStrategy", "torchrec"]),
        ("sizes", ["5"]),
        ("no checkpoint", ["best.ckpt"]),
        ("other data", ["'renamed'", "'synthetic'"]),
        ("other network", ["model.network"]),
        ("other optimizer", ["adagrad", "sgd"]),
        ("damaged", ["damaged.ckpt", "not allowed"]),
        ("an empty file", ["no checkpoint at", "empty.yaml", "laser fit wrote"]),
        ("no run", ["nothing"]),
        ("results in a file", ["laser study", "empty.yaml cannot be used", "another place"]),
    ],
)
def test_a_mistake_is_one_sentence(mistakes, name, words):
    code, errors = mistakes[name]
    assert code == 2, errors
    assert [word for word in words if word not in errors] == []
    assert errors.count("\n") == 1, errors
    assert "Traceback" not in errors
    assert not any(word in errors for word in ("collections.abc", "Parser key", "<class", "typing."))


def test_two_processes_make_one_sentence_of_one_mistake(small, tmp_path):
    options = ["--trainer.devices", "2", "--trainer.default_root_dir", tmp_path]
    done = laser("fit", *small, *options, "--model.network.init_args.mixer_tokens", "5")
    assert done.returncode == 2
    assert done.stderr.count("mixer_tokens") == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_of_ours_keeps_its_traceback(tmp_path, small, prepared):
    broken = tmp_path / "broken"
    shutil.copytree(prepared, broken)
    module = tmp_path / "site" / "faulty.py"
    module.parent.mkdir()
    module.write_text(
        "from laser.model.laser import Laser\nclass Faulty(Laser):\n  def forward(self, batch): return 1 / 0\n"
    )
    command = [LASER, "fit", *small, "--model.network.class_path", "faulty.Faulty"]
    command += ["--trainer.default_root_dir", str(tmp_path / "run")]
    path = {"PYTHONPATH": str(module.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment() | path, timeout=100)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_help_needs_no_torch():
    script = "import sys; from laser.cli import main; assert main(['--help']) == 0; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout


def test_print_config_is_a_complete_recipe(small):
    done = laser("fit", *small, "--print_config")
    assert done.returncode == 0
    for option in ("gate_bias: null", "initial_accumulator: 0.1", "precision: 32-true", "predict_split: test"):
        assert option in done.stdout


def test_doctor_finds_everything_well():
    done = laser("doctor")
    assert done.returncode == 0, done.stdout
    for line in ("torchrec", "embedding lookup", "history store", "kernels"):
        assert f"ok   {line}" in done.stdout


def test_where_slurm_is_installed_nothing_is_said_of_it(tmp_path, monkeypatch):
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with warnings.catch_warnings(record=True) as said:
        quieten()
        SLURMEnvironment._validate_srun_used()
    assert not said


def test_plan_for_a_cluster_that_is_not_there(small):
    huge = ("--cluster.processes", "64", "--cluster.rows.item", "20000000000")
    fits = laser("plan", *small, *huge, "--cluster.memory_gb", "1000")
    assert fits.returncode == 0, fits.stderr
    assert "0-63" in fits.stdout
    assert fits.stderr == ""
    short = laser("plan", *small, *huge, "--cluster.memory_gb", "1")
    assert short.returncode == 1
    assert "DOES NOT FIT" in short.stdout
    few = laser("plan", *small, "--cluster.processes", "2", "--cluster.rows.item", "3", "--data.batch_size", "1000")
    table = next(line for line in few.stdout.splitlines() if line.startswith("item "))
    assert table.split()[-1] == "6"  # each process looks up each row once
    unknown = laser("plan", *small, "--cluster.rows.items", "5")
    assert unknown.returncode == 2
    assert "cluster.rows names 'items'" in unknown.stderr
    assert unknown.stderr.count("\n") == 1
