"""A study over several data sets: runs, rows, comparisons and the best possible AUC stay within each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laser.report.scores import scores
from laser.study.conclusions import against
from laser.study.design import read_study
from laser.study.page import write_study
from laser.study.progress import Plan
from laser.study.reading import read_study as read_table
from laser.study.results import Results, collect
from laser.study.runs import make_run
from laser.study.store import Store

USERS = {"here": 30, "there": 50}
BEST = 0.9321


def fingerprint(path: Path) -> str:
    """Of what lies here or there, wherever that is."""
    return f"data of {path.name}"


def write_run(plan: Plan, step, strength: float) -> None:
    """A finished run with the rows of its data set, which differ in number and users."""
    users = USERS[Path(step.run.options["data.path"]).name]
    fixed, random = np.random.default_rng(users), np.random.default_rng([step.run.seed, int(100 * strength), users])
    label, user = fixed.integers(0, 2, 40 * users), np.repeat(np.arange(users), 40)
    probability = 1 / (1 + np.exp(-strength * (label - 0.5) - random.normal(size=len(label))))
    columns = {"row": np.arange(len(label)), "user": user, "label": label.astype(np.int8), "probability": probability}
    work = plan.store.work(step.key)
    (work / "predictions").mkdir(parents=True)
    pq.write_table(
        pa.table(columns | {"history_length": np.arange(len(label)) % (users + 20)}), work / "predictions/test.parquet"
    )
    facts = {"key": step.key, "tested": True, "validation": {"auc": strength / 2, "epoch": 0, "epochs": 1}}
    facts |= {"seconds": {"fit": 1.0}, "data": plan.data(Path(step.run.options["data.path"])), "command": ["laser"]}
    (work / "record.json").write_text(json.dumps(facts | {"finished": "2026-01-01", "versions": {"commit": "abc"}}))
    model = {"table_parameters": 1, "dense_parameters": 2, "sequence_macs": int(100 * strength), "flops": 6_000_000}
    (work / "metrics.json").write_text(json.dumps({"test": scores(probability, label, user), "model": model}))
    plan.store.keep(step.key)


@pytest.fixture
def content(tiny) -> dict:
    settings = {
        "near": {"label": "near", "options": {"data.path": "at/here"}, "best": {"auc": BEST}},
        "far": {"label": "far", "options": {"data.path": "at/there"}},
        "cut": {"label": "cut", "options": {"data.path": "at/there", "data.max_history": 5}},
    }
    options = {name: value for name, value in tiny["options"].items() if name != "data.path"}
    return {**tiny, "options": options, "settings": settings, "seeds": [0, 1]}


@pytest.fixture
def plan(content, write_study_yaml, tmp_path) -> Plan:
    return Plan(read_study(write_study_yaml(tmp_path, content)), Store(tmp_path / "out"), fingerprint)


@pytest.fixture
def results(plan) -> Results:
    for step in plan.due():
        write_run(plan, step, 1.6 if step.run.model == "laser" else 1.0)
    assert plan.due() == []
    return collect(plan)


def test_another_data_set_is_another_run_and_another_place_is_not(plan, content, write_study_yaml, tmp_path):
    assert plan.data_sets() == {"data of here": ["near"], "data of there": ["far", "cut"]}
    content["settings"]["near"]["options"] = {"data.path": "moved/here"}
    moved = Plan(read_study(write_study_yaml(tmp_path, content)), plan.store, fingerprint)
    content["settings"]["near"]["options"] = {"data.path": "at/there"}
    changed = Plan(read_study(write_study_yaml(tmp_path, content)), plan.store, fingerprint)
    keys = [one.step("din", "near", 0, 0, "final").key for one in (plan, moved, changed)]
    assert keys[0] == keys[1] != keys[2]
    assert keys[0] == make_run(plan.study, "din", "near", 0, 0).key("data of here")


def test_models_of_a_setting_share_a_data_set(content, write_study_yaml, tmp_path):
    din = {**content["models"]["din"], "options": {"data.path": "at/here"}}
    content["models"] = {**content["models"], "din": din}
    del content["settings"]["far"]["options"]["data.path"]
    content["options"]["data.path"] = "at/there"
    plan = Plan(read_study(write_study_yaml(tmp_path, content)), Store(tmp_path), fingerprint)
    with pytest.raises(ValueError, match=r"setting far \(at/here, at/there\)"):
        plan.data_sets()


def test_comparisons_stay_within_a_data_set(results):
    found = [(one.one, one.other) for one in results.comparisons if one.metric == "auc"]
    models = [(("laser", setting), ("din", setting)) for setting in ("near", "far", "cut")]
    settings = [((model, "cut"), (model, "far")) for model in ("laser", "din")]
    assert sorted(found) == sorted(models + settings)
    users = {pair: one.replicates["auc"].shape for pair, one in results.pairs.items()}
    assert len(set(users.values())) == 1
    for pair, one in results.pairs.items():
        assert len(one.by_length) == (2 if pair[1] != "near" else 1), "history lengths are those of the data set's rows"


def test_a_family_of_corrections_is_one_data_set(results):
    """The comparison on the first data set is alone in its family: it is not corrected."""
    alone = [one for one in results.comparisons if one.one[1] == "near"]
    assert [one.p_corrected for one in alone] == [one.difference.p for one in alone]
    assert [one.p_seeds_corrected for one in alone] == [one.difference.p_seeds for one in alone]
    others = [one for one in results.comparisons if one.one == ("laser", "far") and one.metric == "auc"]
    assert others[0].p_corrected == pytest.approx(2 * others[0].difference.p), "far and cut are two"


def test_the_report_has_a_table_and_a_panel_for_each_and_the_best_possible(results):
    text = write_study(results).read_text()
    assert [line for line in text.splitlines() if line.startswith("###")] == ["### near", "### far, cut"]
    assert text.count("| best possible, near |  | 0.9321 | – | – |  |  |") == 1  # noqa: RUF001
    assert "Data set data of here, data of there;" in text
    summary = (results.plan.store.path / results.plan.study.name / "summary.md").read_text()
    assert [line for line in summary.splitlines() if line.startswith("**")] == ["**near**", "**far, cut**"]
    assert "| best possible |  | 0.9321 | – | – |" in summary  # noqa: RUF001
    folder = results.plan.store.path / results.plan.study.name
    drawn = (folder / "pareto.svg").read_text()
    assert drawn.count("best possible") == 1, "a line in the panel of the first data set, named in the legend"
    rows = pq.read_table(folder / "study.parquet").to_pylist()
    assert {(row["setting"], row["data"], row["best_auc"]) for row in rows} == {
        ("near", "data of here", BEST),
        ("far", "data of there", None),
        ("cut", "data of there", None),
    }
    assert {row["flops"] for row in rows} == {6_000_000}
    near, *others = read_table(folder / "study.parquet")
    assert [one.name for one in others if one.data == near.data] == ["DIN, near"]
    assert [one.name for one in against([near, *others], near.name)] == ["DIN, near"]


@pytest.mark.parametrize(("best", "words"), [({"auc": "high"}, "expected a number"), ({"area": 1}, "no key 'area'")])
def test_a_wrong_best_is_told(content, write_study_yaml, tmp_path, best, words):
    content["settings"]["near"]["best"] = best
    with pytest.raises(ValueError, match=words):
        read_study(write_study_yaml(tmp_path, content))
