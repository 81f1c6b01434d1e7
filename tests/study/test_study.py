"""A study of real runs: killed, taken up again, reported; failures and mistakes."""

from __future__ import annotations

import json
import os
import signal
import tarfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laser.report.scores import scores
from laser.study.store import Store

pytestmark = pytest.mark.timeout(400)


def workers(out: Path) -> list[int]:
    """Processes of runs in ``out``."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if "laser.study.worker" in line and str(out) in line:
                found.append(int(folder.name))
    return found


def wait(condition, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny, write_study_yaml, start, study):
    """Folder of a study that was killed after its first run; that run's record; the second call's words."""
    root = tmp_path_factory.mktemp("study")
    out, path = root / "out", write_study_yaml(root, tiny)
    killed = start(path, "--out", out, "--jobs", "2")
    wait(lambda: killed.poll() is not None or list((out / "runs").glob("[a-z]*/record.json")))
    assert killed.poll() is None, killed.communicate()
    wait(lambda: workers(out), 20)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    wait(lambda: not workers(out), 20)
    before = {file: file.stat().st_mtime_ns for file in (out / "runs").glob("[a-z]*/record.json")}
    code, said, errors = study(path, "--out", out, "--jobs", "2", "--pack", root / "packed.tar.xz")
    assert code == 0, said + errors
    return root, before, said


def test_a_killed_study_goes_on_where_it_was(finished):
    root, before, said = finished
    assert before
    assert said.startswith(f"laser study: {len(before)} of 4 runs are done; 2 at once")
    assert "[4/4]" in said
    for file, written in before.items():
        assert file.stat().st_mtime_ns == written, "a finished run was run again"
    assert not list((root / "out" / "runs").glob(".*")), "half of a result was left"


def test_a_finished_study_runs_nothing(finished, study):
    root, _, _ = finished
    code, said, errors = study(root / "tiny.yaml", "--out", root / "out")
    assert code == 0, errors
    lines = said.splitlines()
    assert lines[0] == "laser study: 4 of 4 runs are done; 1 at once"
    assert lines[-1].endswith("tiny/study.md")
    assert not [line for line in lines if "seed" in line]


def test_records_tell_the_command_the_code_and_the_data(finished):
    root, _, _ = finished
    records = [json.loads(file.read_text()) for file in (root / "out" / "runs").glob("din*/record.json")]
    assert sorted(record["seed"] for record in records) == [0, 1]
    for record in records:
        assert record["command"][:3] == ["laser", "fit", "-c"]
        assert f"--seed_everything={record['seed']}" in record["command"]
        assert record["versions"]["torch"]
        assert record["data"]
        assert record["validation"]["epochs"] == 2
        assert "test" not in record


def test_kept_predictions_give_the_exact_metrics_up_to_rounding(finished):
    root, _, _ = finished
    store = Store(root / "out")
    for file in (root / "out" / "runs").glob("[dl]*/record.json"):
        record = json.loads(file.read_text())
        exact = store.metrics(record["key"])["test"]
        kept = store.predictions(record, record["key"])
        found = scores(kept["probability"], kept["label"], kept["user"])
        # The order of a hardly trained model's logits is lost in rounding, so that ranks agree loosely;
        # those of trained models agree to 2e-5.
        for name, within in {
            "auc": 0.03,
            "gauc": 0.03,
            "log_loss": 2e-3,
            "ece": 0.03,
            "predicted_over_observed": 5e-3,
        }.items():
            assert found[name] == pytest.approx(exact[name], abs=within), name
    assert len(list((root / "out" / "rows").iterdir())) == 1


def test_the_report_is_complete(finished):
    root, _, _ = finished
    folder = root / "out" / "tiny"
    text = (folder / "study.md").read_text()
    for part in ("# A tiny study", "## Test split", "## Comparisons", "## Costs", "LASER − DIN", "significant"):  # noqa: RUF001
        assert part in text, part
    assert "Not complete" not in text
    assert "were not measured" not in text
    assert (folder / "pareto.svg").read_bytes().startswith(b"<?xml")
    table = pq.read_table(folder / "study.parquet")
    assert len(table) == 4
    for name in ("auc", "gauc", "log_loss", "ece", "auc_from_0", "latency_ms_500", "peak_memory_bytes", "hardware"):
        assert all(value is not None for value in table[name].to_pylist()), name
    assert len(set(table["auc"].to_pylist())) == 4, "seeds and models differ"


def test_the_packed_results_are_small_and_stand_alone(finished, study, tmp_path):
    root, _, _ = finished
    assert (root / "packed.tar.xz").stat().st_size < 200_000
    with tarfile.open(root / "packed.tar.xz") as file:
        assert not [name for name in file.getnames() if "checkpoint" in name or "work" in name]
        file.extractall(tmp_path / "elsewhere", filter="data")
    code, said, errors = study(root / "tiny.yaml", "--out", tmp_path / "elsewhere")
    assert code == 0, errors
    assert said.startswith("laser study: 4 of 4 runs are done")


def test_a_failed_run_is_told_and_does_not_end_the_study(finished, tiny, write_study_yaml, study, tmp_path):
    """The other model's runs are those of the finished study: they are found, not run again."""
    root, _, _ = finished
    broken = {"recipes": tiny["models"]["din"]["recipes"], "options": {"model.network.init_args.breadth": 3}}
    content = {**tiny, "name": "broken", "seeds": [0], "models": {**tiny["models"], "broken": broken}}
    code, said, errors = study(write_study_yaml(tmp_path, content), "--out", root / "out", "--no-costs")
    assert code == 1, errors
    assert said.startswith("laser study: 2 of 3 runs are done")
    failed = [line for line in said.splitlines() if "FAILED" in line]
    assert len(failed) == 1
    assert "breadth" in failed[0]
    assert "1 runs failed" in said
    assert len(list((root / "out" / "failed").iterdir())) == 1
    assert "Not complete: 1 of 3" in (root / "out" / "broken" / "study.md").read_text()
