"""The stated truth of synthetic logs holds, evidence is as distant as stated, and processes change nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from data_prep.pipeline import prepare
from data_prep.synthetic import generating
from data_prep.synthetic.generating import generate
from data_prep.synthetic.world import RECENT_EVENTS, World

ROOT = Path(__file__).parents[3]
WORLD = World(events=120_000, evidence_distance=40, users=300, seed=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("synthetic") / "raw"
    return out, generate(WORLD, out)


@pytest.fixture(scope="module")
def log(made: tuple[Path, dict[str, Any]]) -> dict[str, np.ndarray]:
    """All rows sorted by user and time, with the topic."""
    table = pa.concat_tables(pq.read_table(path) for path in sorted((made[0] / "log").iterdir()))
    rows = {name: table[name].to_numpy() for name in table.column_names}
    order = np.lexsort([rows["time"], rows["user"]])
    rows = {name: values[order] for name, values in rows.items()}
    return rows | {"topic": pq.read_table(made[0] / "items.parquet")["topic"].to_numpy()[rows["item"]]}


def test_stated_auc_is_that_of_the_stored_probability(made, log):
    """Standard deviation of an AUC of m positives and n negatives is below sqrt(1 / (4 min(m, n)))."""
    truth = made[1]
    few = min(log["click"].sum(), (1 - log["click"]).sum())
    assert abs(roc_auc_score(log["click"], log["probability"]) - truth["all"]["best_auc"]) < 2 / np.sqrt(4 * few)
    later = log["time"] >= WORLD.boundaries[1]
    few = min(log["click"][later].sum(), (1 - log["click"][later]).sum())
    of_test = roc_auc_score(log["click"][later], log["probability"][later])
    assert abs(of_test - truth["test"]["best_auc"]) < 2 / np.sqrt(4 * few)
    assert truth["test"]["events"] == later.sum()


def test_probabilities_are_calibrated(log):
    order = np.argsort(log["probability"])
    for part in np.array_split(order, 10):
        p = log["probability"][part]
        error = np.sqrt((p * (1 - p)).sum())
        assert abs(log["click"][part].sum() - p.sum()) < 4 * error


def test_no_evidence_nearer_than_stated(log):
    last: dict[tuple[int, int], int] = {}
    first = {}
    for row, (user, topic) in enumerate(zip(log["user"], log["topic"], strict=True)):
        first.setdefault(user, row)
        if topic >= WORLD.topics:
            assert log["evidence_age"][row] == 0
            continue
        age = row - last.get((user, topic), row)
        assert log["evidence_age"][row] == age
        assert age == 0 or age >= WORLD.evidence_distance
        last[user, topic] = row
    assert (log["evidence_age"] > 0).mean() > 0.5


def evidence_within(log: dict[str, np.ndarray], reach: int) -> np.ndarray:
    """Clicks minus misses on the row's topic (fading), and on its category among the newest events, [rows, 2]."""
    found = np.zeros((len(log["user"]), 2))
    gain = np.where(log["click"] == 1, 1.0, -1 / 3)
    places: dict[tuple[int, int], list[int]] = {}
    for row in range(len(found)):
        key = (log["user"][row], log["topic"][row])
        if log["topic"][row] >= WORLD.topics:
            continue
        earlier = [place for place in reversed(places.setdefault(key, [])) if row - place <= reach]
        found[row, 0] = sum(WORLD.fading**age * gain[place] for age, place in enumerate(earlier))
        for near in range(max(0, row - RECENT_EVENTS), row):
            same = log["topic"][near] % WORLD.categories == log["topic"][row] % WORLD.categories
            if log["user"][near] == log["user"][row] and same and log["topic"][near] < WORLD.topics:
                found[row, 1] += gain[near]
        places[key].append(row)
    return found


def test_distant_evidence_is_needed_and_enough(made, log):
    """A logistic regression on recent events stays where the truth says, one on all events comes near the best."""
    later = log["time"] >= WORLD.boundaries[1]
    context = [log["hour"] == hour for hour in range(24)] + [log["scenario"] == name for name in ("video", "search")]
    context.append(log["topic"] >= WORLD.topics)
    rate = np.bincount(log["item"][~later], log["click"][~later] - 0.4, WORLD.num_items)
    quality = (rate / (np.bincount(log["item"][~later], minlength=WORLD.num_items) + 20))[log["item"]]
    reached = {}
    for reach in (WORLD.evidence_distance - 1, 10**9):
        features = np.column_stack([evidence_within(log, reach), quality, *context])
        model = LogisticRegression(max_iter=300).fit(features[~later], log["click"][~later])
        reached[reach] = roc_auc_score(log["click"][later], model.predict_proba(features[later])[:, 1])
    truth = made[1]["test"]
    recent = truth["auc_from_last_events"][str(WORLD.evidence_distance - 1)]
    assert truth["best_auc"] - recent > 0.1
    assert reached[WORLD.evidence_distance - 1] < recent + 0.01
    assert reached[10**9] > truth["best_auc"] - 0.02


def test_longer_histories_attain_more(made):
    attained = [*made[1]["all"]["auc_from_last_events"].values(), made[1]["all"]["best_auc"]]
    assert attained == sorted(attained)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_for_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(generating, "BLOCK_EVENTS", 2_000)
    world = World(events=8_000, evidence_distance=20)
    generate(world, tmp_path / "one")
    generate(world, tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len(list((tmp_path / "one/log").iterdir())) > 2
    generate(dataclasses.replace(world, seed=1), tmp_path / "other")
    assert files(tmp_path / "one")["log/part-000000.parquet"] != files(tmp_path / "other")["log/part-000000.parquet"]


def test_processes_do_not_change_the_log(tmp_path, laser_prep):
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = laser_prep("synthetic", out, "--events", "600000", "--processes", str(processes))
        assert done.returncode == 0, done.stderr
    assert "best AUC" in done.stdout
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_prepares_with_its_own_recipe(tmp_path):
    truth = generate(World(events=6_000, evidence_distance=20), tmp_path / "raw")
    report = prepare(tmp_path / "raw/recipe.yaml", tmp_path / "prepared")
    assert report["rows"]["read"] == truth["all"]["events"] == report["events"]
    for split in ("train", "val", "test"):
        assert report["samples"][split]["samples"] == truth[split]["events"]
        assert report["samples"][split]["label_share"] == pytest.approx(truth[split]["click_rate"])


def test_recipe_in_conf_is_the_one_of_the_defaults(tmp_path):
    generate(World(events=1_000), tmp_path / "raw")
    written = yaml.safe_load((tmp_path / "raw/recipe.yaml").read_text())
    del written["raw"]
    assert yaml.safe_load((ROOT / "conf/prep/synthetic.yaml").read_text()) == written


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("evidence_distance", "3", "expected at least 10"),
        ("days", "4", "expected at least 10"),
        ("noise", "1.5", "expected a share"),
        ("events", "0", "expected at least 1"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, laser_prep, option, value, told):
    done = laser_prep("synthetic", tmp_path / "out", f"--{option}", value)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        generate(World(events=100), tmp_path)
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == '["letter.txt"]'
