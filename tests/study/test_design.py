"""Studies from YAML: what they mean, what is refused, when a run is a new run, which trial is chosen."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import laser.study.store as store_module
from laser.cli import main
from laser.study.commands import make_plans
from laser.study.design import read_study
from laser.study.progress import Durations, Plan
from laser.study.runner import last_line
from laser.study.runs import make_run
from laser.study.slots import gpu_names
from laser.study.store import FITTED, Store

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize("path", sorted((CONF / "study").glob("*.yaml")), ids=lambda path: path.stem)
def test_studies_of_the_project_can_be_read(path, monkeypatch):
    monkeypatch.chdir(CONF.parent)
    study = read_study(path)
    assert study.name == path.stem
    assert len(study.seeds) == {"synthetic": 3, "globo": 3, "evolution": 9, "length_best": 10}.get(study.name, 5)
    for model, setting in study.pairs:
        for trial in range(len(study.models[model].trials)):
            assert make_run(study, model, setting, trial, 0).arguments()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipes": []}, ["no recipes"]),
        ({"models": None}, ["no models"]),
        ({"seeds": [0, 0]}, ["seeds", "[0, 0]", "different"]),
        ({"seeds": 3}, ["seeds", "3"]),
        ({"subject": "other"}, ["subject", "'other'", "laser, din"]),
        ({"model": {}}, ["no key 'model'", "models"]),
        ({"recipes": ["conf/none.yaml"]}, ["conf/none.yaml", "no file"]),
        ({"models": {"a b": {}}}, ["'a b'", "letters"]),
        ({"models": {"laser": {"seeds": [1]}}}, ["models.laser", "no key 'seeds'"]),
        ({"models": {"laser": {"trials": [{}, {}]}, "din": {}}}, ["same number of trials", "laser 2", "din 1"]),
        ({"tuning": {"trials": []}}, ["tuning.trials", "list"]),
        ({"tuning": {"setting": "L5"}}, ["tuning.setting", "'L5'", "default"]),
        ({"tuning": {"model": "other"}}, ["tuning.model", "'other'", "laser, din"]),
        ({"settings": {"x": {"value": "long"}}}, ["settings.x.value", "'long'", "number"]),
        ({"options": {1: 2}}, ["option 1"]),
    ],
)
def test_a_mistake_is_one_sentence(tiny, write_study_yaml, tmp_path, capsys, change, words):
    path = write_study_yaml(tmp_path, {**tiny, **change})
    assert main(["study", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == [], said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.yaml"], ["none.yaml", "no such file"]),
        (["FILE", "--jobs", "0"], ["--jobs", "0"]),
        (["FILE", "--gpus", "two"], ["--gpus", "'two'"]),
        (["FILE", "--set", "data.path"], ["KEY=VALUE"]),
        (["FILE", "--set", "data.path=nowhere"], ["nowhere", "laser-prep"]),
        (["FILE", "FILE"], ["same name"]),
        (["FILE", "--models", "din,dim"], ["--models", "'dim'", "laser, din"]),
    ],
)
def test_mistakes_of_the_command_line(tiny, write_study_yaml, tmp_path, capsys, arguments, words):
    path = str(write_study_yaml(tmp_path, tiny))
    out = ["--out", str(tmp_path / "out")]
    assert main(["study", *(path if word == "FILE" else word for word in arguments), *out]) == 2
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == [], said
    assert said.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: [1,"])
def test_other_files_are_refused(tmp_path, capsys, content):
    (tmp_path / "odd.yaml").write_text(content)
    assert main(["study", str(tmp_path / "odd.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "odd.yaml" in capsys.readouterr().err


def test_two_studies_do_not_work_in_one_folder(tiny, write_study_yaml, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(store_module, "PATIENCE_SECONDS", 0.5)
    path = write_study_yaml(tmp_path, tiny)
    with Store(tmp_path / "out").locked():
        assert main(["study", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "another study works in" in capsys.readouterr().err


def test_a_study_waits_for_one_that_ends(tmp_path, capsys):
    """As one does that was told to stop."""
    release, began = threading.Event(), time.monotonic()

    def other():
        with Store(tmp_path).locked():
            held.set()
            release.wait(10)

    held = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(10)
    threading.Timer(1.0, release.set).start()
    with Store(tmp_path).locked():
        assert 1.0 <= time.monotonic() - began < 9.0
    thread.join()
    assert "waiting 60 s for it" in capsys.readouterr().out


def test_gpus_are_counted_or_named_within_those_that_are_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_names(None) == []
    assert gpu_names("2") == ["0", "1"]
    assert gpu_names("0,3") == ["0", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert gpu_names("2") == ["4", "7"]
    with pytest.raises(ValueError, match="shows 2 only"):
        gpu_names("3")


def test_a_changed_setting_is_a_new_run_and_a_comment_is_not(tiny, write_study_yaml, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {warm_up_steps: 3}")
    content = {**tiny, "recipes": [*tiny["recipes"], str(recipe)]}
    run = make_run(read_study(write_study_yaml(tmp_path, content)), "din", "default", 0, 0)
    key = run.key("data")
    assert key.startswith("din.default.seed0.")
    assert run.key("other data") != key

    def again(text: str, **changes) -> str:
        from laser.study import runs

        runs._content.cache_clear()
        recipe.write_text(text)
        study = read_study(write_study_yaml(tmp_path, {**content, **changes}))
        return make_run(study, "din", "default", 0, 0).key("data")

    assert again("# said\nmodel: {warm_up_steps: 3}", name="other") == key
    assert again("model: {warm_up_steps: 4}") != key
    assert again("model: {warm_up_steps: 3}", options={**tiny["options"], "data.max_history": 13}) != key
    elsewhere = {**tiny["options"], "data.path": "elsewhere", "trainer.logger": "laser.train.loggers.CSVLog"}
    assert again("model: {warm_up_steps: 3}", options=elsewhere) == key


def record(store: Store, plan: Plan, step, auc: float, tested: bool = False, seconds: float = 10) -> None:
    folder = store.path / "runs" / step.key
    folder.mkdir(parents=True, exist_ok=True)
    found = {"key": step.key, "tested": tested, "seconds": {"fit": seconds}, "validation": {"auc": auc}}
    (folder / "record.json").write_text(json.dumps({**found, "first_validation": {"auc": auc}}))
    plan.records.pop(step.key, None)


@pytest.fixture
def tuned(tiny, write_study_yaml, tmp_path) -> Plan:
    trials = [{}, {"options": {"model.dense_optimizer.learning_rate": 0.01}}]
    settings = {"short": {"options": {"data.max_history": 6}}, "long": {"options": {"data.max_history": 12}}}
    content = {**tiny, "settings": settings, "tuning": {"seeds": [7, 8], "trials": trials, "setting": "long"}}
    return Plan(read_study(write_study_yaml(tmp_path, content)), Store(tmp_path / "out"), lambda path: "data")


def test_the_trial_with_the_best_mean_validation_is_run_with_the_seeds(tuned):
    # 2 models x 2 trials x 2 tuning seeds in one setting, and 2 models x 2 settings x 2 seeds.
    assert tuned.total == 8 + 8
    assert len(tuned.due()) == 8
    assert {step.run.setting for step in tuned.due()} == {"long"}
    assert {step.purpose for step in tuned.due()} == {"tuning"}
    for trial, aucs in enumerate([(0.70, 0.80), (0.76, 0.75)]):
        for step, auc in zip(tuned.tuning("din", "long")[trial], aucs, strict=True):
            assert tuned.choice("din", "long") is None
            record(tuned.store, tuned, step, auc)
    assert tuned.choice("din", "long") == tuned.choice("din", "short") == 1
    assert tuned.choice("laser", "long") is None
    final = [step for step in tuned.due() if step.purpose == "final"]
    assert {(step.run.model, step.run.trial) for step in final} == {("din", 1)}
    assert sorted((step.run.setting, step.run.seed) for step in final) == [
        ("long", 0), ("long", 1), ("short", 0), ("short", 1),
    ]  # fmt: skip


def test_one_model_may_be_tuned_for_all(tuned):
    plan = Plan(replace(tuned.study, tuning_model="laser"), tuned.store, tuned.data)
    assert plan.total == 4 + 8
    assert {step.run.model for step in plan.due()} == {"laser"}
    for trial, steps in enumerate(plan.tuning("laser", "long")):
        for step in steps:
            record(plan.store, plan, step, 0.7 + 0.1 * trial)
    assert {(step.run.model, step.run.trial) for step in plan.due()} == {("laser", 1), ("din", 1)}


def test_what_is_trained_here_is_tested_before_anything_is_trained(tuned):
    for trial, steps in enumerate(tuned.tuning("din", "long")):
        for step in steps:
            record(tuned.store, tuned, step, 0.7 + 0.1 * trial, seconds=300)
    assert tuned.due()[0].purpose == "tuning"
    winner = tuned.final("din", "long")[1]
    fitted = tuned.store.work(winner.key) / FITTED
    fitted.parent.mkdir(parents=True)
    fitted.touch()
    assert tuned.due()[0] == winner
    assert len({step.key for step in tuned.due()}) == len(tuned.due())
    assert Durations([tuned]).expected(winner) == 30
    assert Durations([tuned]).expected(tuned.final("din", "long")[0]) == 300


def test_only_some_models_may_be_run(tuned):
    plan = Plan(tuned.study, tuned.store, tuned.data, models=frozenset({"din"}))
    assert {step.run.model for step in plan.due()} == {"din"}
    assert plan.total == tuned.total


def test_a_model_need_only_be_in_one_of_the_studies(tiny, tuned, write_study_yaml, tmp_path):
    other = read_study(write_study_yaml(tmp_path, {**tiny, "name": "other", "models": {"laser": {}, "alone": {}}}))
    both = make_plans([tuned.study, other], tuned.store, "alone,din")
    assert [{step.run.model for step in plan.due()} for plan in both] == [{"din"}, {"alone"}]
    assert make_plans([tuned.study, other], tuned.store, "alone")[0].due() == []
    assert {step.run.model for step in make_plans([other], tuned.store)[0].due()} == {"laser", "alone"}
    with pytest.raises(ValueError, match=r"'dim', study .* has laser, din; study other has laser, alone"):
        make_plans([tuned.study, other], tuned.store, "din,dim")


def test_the_next_call_runs_again_what_failed(tuned):
    step = tuned.due()[0]
    log = tuned.store.work(step.key) / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("torch.OutOfMemoryError: CUDA out of memory")
    tuned.store.keep_failure(step.key, {"exit_code": 1})
    tuned.failed.add(step.key)
    assert step not in tuned.due()
    assert step in Plan(tuned.study, Store(tuned.store.path), tuned.data).due()


def test_a_failed_trial_is_not_chosen(tuned):
    for trial, steps in enumerate(tuned.tuning("din", "long")):
        for step in steps:
            record(tuned.store, tuned, step, 0.7 + 0.1 * trial)
    lost = tuned.tuning("din", "long")[1][0]
    (tuned.store.path / "runs" / lost.key / "record.json").unlink()
    tuned.records.clear()
    assert tuned.choice("din", "long") is None
    tuned.failed.add(lost.key)
    assert tuned.choice("din", "long") == 0
    tuned.failed |= {step.key for steps in tuned.tuning("din", "long") for step in steps}
    for step in tuned.tuning("din", "long")[0]:
        (tuned.store.path / "runs" / step.key / "record.json").unlink()
    tuned.records.clear()
    assert tuned.choice("din", "long") == -1
    assert tuned.final("din", "long") == []


def test_a_tuning_run_is_no_final_run_until_it_is_tested(tuned):
    step = tuned.step("din", "long", 0, 7, "final")
    record(tuned.store, tuned, step, 0.7)
    assert tuned.record(step) is None
    assert tuned.record(tuned.step("din", "long", 0, 7, "tuning")) is not None
    record(tuned.store, tuned, step, 0.7, tested=True)
    assert tuned.record(step) is not None


def test_durations_are_those_of_the_same_model_or_the_longest(tuned):
    din, laser = tuned.tuning("din", "long")[0][0], tuned.tuning("laser", "long")[0][0]
    assert Durations([tuned]).expected(din) == float("inf")
    record(tuned.store, tuned, din, 0.7, seconds=30)
    found = Durations([tuned])
    assert found.expected(laser) == 30
    found.add(laser, 90)
    assert (found.expected(laser), found.expected(din)) == (90, 30)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("step 1\nTraceback\n  File\nlaser.X: no\ntorch.OutOfMemoryError: CUDA out of memory.\nwarning", "torch.OutOf"),
        ("[rank0]: RuntimeError: shapes\n[rank0]: differ", "[rank0]: RuntimeError: shapes [rank0]: differ"),
        ("killed", "killed"),
        ("", "it said nothing"),
    ],
)
def test_a_failure_is_told_from_the_line_that_names_it(tmp_path, log, said):
    (tmp_path / "log.txt").write_text(log)
    assert last_line(tmp_path / "log.txt").startswith(said)
