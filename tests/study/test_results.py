"""Tables and sentences of a study, from results made by hand: what is and what is not significant."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laser.study.design import read_study
from laser.study.page import power_laws, write_study
from laser.study.progress import Plan
from laser.study.results import Results, collect
from laser.study.store import Store

ROWS, USERS = 3000, 60
STRENGTH = {"laser": 1.6, "new": 1.61, "din": 1.0, "twin": 1.6}
"""How much a model's logits follow the label, above noise of 1."""


def write_run(plan: Plan, step, strength: float) -> None:
    """A finished run with predictions of this strength."""
    random = np.random.default_rng([7, step.run.seed, int(100 * strength), len(step.run.setting)])
    fixed = np.random.default_rng(0)
    label, user = fixed.integers(0, 2, ROWS), np.sort(fixed.integers(0, USERS, ROWS))
    work = plan.store.work(step.key)
    (work / "predictions").mkdir(parents=True)
    logit = strength * (label - 0.5) + random.normal(size=ROWS)
    columns = {"row": np.arange(ROWS), "user": user, "label": label.astype(np.int8)}
    columns |= {"probability": 1 / (1 + np.exp(-logit)), "history_length": np.arange(ROWS) % 300}
    pq.write_table(pa.table(columns), work / "predictions" / "test.parquet")
    validation = {"auc": strength / 2, "epoch": 0, "epochs": 1}
    facts = {"key": step.key, "tested": True, "validation": validation, "seconds": {"fit": 1.0}, "data": "d"}
    facts |= {"finished": "2026-01-01", "versions": {"commit": "abc"}, "command": ["laser", "fit", "--a=[1, 2]"]}
    (work / "record.json").write_text(json.dumps(facts))
    from laser.report.scores import scores

    test = scores(columns["probability"], label, user)
    model = {"table_parameters": 10, "dense_parameters": 20, "macs": 5, "sequence_macs": int(100 * strength)}
    (work / "metrics.json").write_text(json.dumps({"test": test, "model": model}))
    plan.store.keep(step.key)


@pytest.fixture(scope="module")
def results(tiny, write_study_yaml, tmp_path_factory) -> Results:
    root = tmp_path_factory.mktemp("results")
    models = {name: {"label": name.upper(), "options": {"data.workers": i}} for i, name in enumerate(STRENGTH, 1)}
    content = {**tiny, "models": models, "subject": ["laser", "new"], "seeds": [0, 1, 2]}
    content["settings"] = {
        "short": {"options": {"data.max_history": 5}, "value": 5},
        "long": {"options": {"data.max_history": 9}, "value": 9},
    }
    plan = Plan(read_study(write_study_yaml(root, content)), Store(root / "out"), lambda path: "data")
    for step in plan.due():
        write_run(plan, step, STRENGTH[step.run.model])
    assert plan.due() == []
    return collect(plan)


def test_differences_that_are_there_are_significant_and_others_are_not(results):
    found = {
        (one.one[0], one.other[0]): one for one in results.comparisons if one.metric == "auc" and "short" in one.one
    }
    assert set(found) == {("laser", "din"), ("laser", "twin"), ("new", "din"), ("new", "twin"), ("new", "laser")}
    for pair, one in found.items():
        assert one.significant == (pair[1] == "din"), pair
        assert one.p_corrected >= one.difference.p
    assert results.best_baseline("short") == "twin"


def test_settings_are_compared_with_the_first(results):
    found = [one for one in results.comparisons if one.metric == "auc" and one.one[1] != one.other[1]]
    assert [(one.one, one.other) for one in found] == [((m, "long"), (m, "short")) for m in STRENGTH]
    assert not [one for one in found if one.significant]


def test_the_report_says_so_in_words(results):
    text = write_study(results).read_text()
    assert "Against the best baseline on validation: LASER, short is" in text
    lines = [line for line in text.splitlines() if line.startswith("- By test AUC LASER, short")]
    assert len(lines) == 1
    above, open_ = lines[0].split("; ")
    assert above.endswith("significantly above DIN, short")
    assert open_.startswith("not significantly different from TWIN, short")
    laws = power_laws(results)
    undecided = [law for law in laws.values() if law.exponent.low <= 0 <= law.exponent.high]
    assert len(laws) == 4
    assert text.count("no dependence established") == len(undecided) > 0
    assert "| NEW, long | 3 |" in text
    table = (results.plan.store.path / "tiny" / "summary.md").read_text().splitlines()
    assert table[0].endswith("| AUC minus that of LASER | AUC minus that with short | million MACs |")
    din = [line.split(" | ") for line in table if line.startswith("| DIN, ")]
    assert [line[6].startswith("-0.1") and line[6].endswith("\\*") for line in din] == [True, True]
    assert [bool(line[7]) for line in din] == [False, True], "the first setting is not compared with itself"
    assert len(table) == 2 + 8 + 1 + 1
    assert "Speed, memory and latency were not measured." in text
    assert "laser fit '--a=[1, 2]'" in text
    assert "Not complete" not in text
    folder = results.plan.store.path / "tiny"
    for name in ("pareto.svg", "by_length.svg", "scaling.svg"):
        assert (folder / name).read_bytes().startswith(b"<?xml"), name
    table = pq.read_table(folder / "study.parquet").to_pylist()
    assert len(table) == 24
    row = next(row for row in table if (row["model"], row["setting"], row["seed"]) == ("din", "long", 1))
    assert row["auc"] == pytest.approx(results.pairs["din", "long"].test["auc"][1])
    assert row["auc_from_200"] == pytest.approx(results.pairs["din", "long"].by_length[200][1])


def test_intervals_over_users_are_around_the_mean(results):
    found = results.pairs["laser", "short"]
    low, high = found.over_users("auc")
    assert low < found.mean("auc").value < high
    assert 0.005 < high - low < 0.05
    assert found.mean("auc").low < found.mean("auc").value


def test_other_rows_are_refused(results):
    store, plan = results.plan.store, results.plan
    key = plan.final("din", "long")[0].key
    file = store.path / "runs" / key / "record.json"
    record = json.loads(file.read_text())
    other = store.path / "rows" / "other.parquet"
    table = pq.read_table(store.path / "rows" / f"{record['rows']}.parquet")
    pq.write_table(table.set_column(2, "label", pa.array(1 - table["label"].to_numpy())), other)
    file.write_text(json.dumps({**record, "rows": "other"}))
    plan.records.clear()
    with pytest.raises(ValueError, match="different rows"):
        collect(plan)
    file.write_text(json.dumps(record))
    plan.records.clear()
