"""Rules over rows: duplicates, users left out, folds of users, negatives drawn, samples thinned."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.pipeline import prepare
from laser.data.loader import BatchLoader
from laser.data.prepared import PreparedData
from laser.seqvault import SeqVault

SPLITS = ("train", "val", "test")
CLICKS = {"label": {"expression": "1"}, "event_side": {}}


def samples(folder, splits=SPLITS) -> dict[str, np.ndarray]:
    table = pa.concat_tables([pq.read_table(folder / "samples" / split) for split in splits])
    return {name: table[name].to_numpy() for name in table.column_names}


def raws(folder, name) -> np.ndarray:
    return np.array([None, *pq.read_table(folder / f"ids/{name}.parquet")["raw"].to_pylist()], object)


def md5(*parts) -> int:
    return int(hashlib.md5("|".join(map(str, parts)).encode()).hexdigest()[:12], 16)


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("within", [None, 0, 4])
def test_duplicates(write, tmp_path, log, keep, within):
    rule = {"same": ["user", "item"], "within": within, "keep": keep}
    report = prepare(write(deduplicate=rule), tmp_path / "out")
    order = np.lexsort((np.arange(360), log["time"]))
    kept, last = [], {}
    for row in order if keep == "first" else order[::-1]:
        key = (log["user"][row], log["item"][row])
        if key not in last or (within is not None and abs(log["time"][row] - last[key]) > within):
            kept.append(row)
        last[key] = log["time"][row]
    assert report["events"] == sum(s["samples"] for s in report["samples"].values()) == len(kept) < 360
    found, users, items = samples(tmp_path / "out"), raws(tmp_path / "out", "user"), raws(tmp_path / "out", "item")
    wanted = sorted((log["user"][r], log["item"][r], log["time"][r]) for r in kept)
    assert sorted(zip(users[found["user"]], items[found["item"]], found["timestamp"])) == wanted


def test_users_with_too_few_or_too_many_events(write, tmp_path, log):
    user = np.where(np.arange(360) < 3, 999, np.where(log["user"] > 80, 90, log["user"]))
    prepare(write({"user": user}, users={"min_events": 5, "max_events": 40}), tmp_path / "out")
    names, counts = np.unique(user, return_counts=True)
    assert set(raws(tmp_path / "out", "user")[1:]) == set(names[(counts >= 5) & (counts <= 40)]) != set(names)


def test_folds_of_users(write, tmp_path, log):
    """The hash is documented: anyone can compute it."""
    split = {"by_user_fold": {"folds": 4, "validation": [1], "test": [2], "seed": 5}}
    report = prepare(write(split=split), tmp_path / "out")
    assert report["split"] == {"way": "by_user_fold", "users_disjoint": True}
    users = raws(tmp_path / "out", "user")
    folds = {user: md5(5, user) % 4 for user in np.unique(log["user"])}
    for split_name, wanted in (("train", {0, 3}), ("val", {1}), ("test", {2})):
        found = set(users[samples(tmp_path / "out", [split_name])["user"]])
        assert found == {user for user, fold in folds.items() if fold in wanted}


def test_session_and_request_stay_with_the_sample(write, tmp_path, log):
    columns = {"visit": np.array([f"v{t // 10}" for t in log["time"]]), "query": log["time"] // 2}
    prepare(write(columns, session={"column": "visit"}, request={"column": "query"}), tmp_path / "out")
    found = samples(tmp_path / "out")
    assert found["session"].tolist() == [f"v{t // 10}" for t in found["timestamp"]]
    assert found["request"].tolist() == (found["timestamp"] // 2).tolist()


def test_thinned_negatives_keep_their_weight(write, tmp_path):
    prepare(write(), tmp_path / "all")
    prepare(write(downsample={"keep": 0.25}), tmp_path / "few")
    for split in SPLITS:
        whole, thin = samples(tmp_path / "all", [split]), samples(tmp_path / "few", [split])
        negatives = (whole["label"] == 0).sum()
        left = (thin["label"] == 0).sum()
        if split == "train":
            assert 0.1 * negatives < left < 0.4 * negatives
            assert set(thin["weight"][thin["label"] == 0]) == {4.0}
        else:
            assert left == negatives
        assert set(thin["weight"][thin["label"] == 1]) == {1.0}
        assert (thin["label"] == 1).sum() == (whole["label"] == 1).sum()
    with SeqVault.open(tmp_path / "few/vault") as vault:
        assert vault.read(np.arange(1, 13)).lengths.sum() == 360


@pytest.mark.parametrize("by", ["uniform", "popularity", "recent"])
def test_negatives(write, tmp_path, log, by):
    rule = {"per_positive": 3, "by": by, "seed": 1} | ({"window": 6} if by == "recent" else {})
    split = {"by_time": {"validation": 1020, "test": 1024}}
    for name, threads in (("out", 1), ("again", 2)):
        prepare(write(negatives=rule, split=split, **CLICKS), tmp_path / name, threads=threads)
    found, again = samples(tmp_path / "out"), samples(tmp_path / "again")
    for name, values in found.items():
        np.testing.assert_array_equal(values, again[name])
    users, items = raws(tmp_path / "out", "user"), raws(tmp_path / "out", "item")
    user, item, time = users[found["user"]], items[found["item"]], found["timestamp"]
    clicks = set(zip(log["user"], log["item"], log["time"]))
    negative = found["label"] == 0
    assert (~negative).sum() == 360
    assert not any(key in clicks for key in zip(user[negative], item[negative], time[negative]))
    for index in np.flatnonzero(negative):
        if by == "recent":
            near = (log["time"] < time[index]) & (log["time"] >= time[index] - 6)
            chance = (log["item"][near] == item[index]).mean()
        else:
            chance = 1 / 25 if by == "uniform" else (log["item"] == item[index]).mean()
        assert chance > 0
        assert found["log_q"][index] == pytest.approx(np.log(chance), rel=1e-6)
    late = 3 * (log["time"] > 1000).sum()
    assert 0.9 * late <= negative.sum() <= (late if by == "recent" else 3 * 360)
    with SeqVault.open(tmp_path / "out/vault") as vault:
        assert vault.read(np.arange(1, 13)).lengths.sum() == 360


def test_negatives_follow_their_proposal(write, tmp_path):
    """Over many draws, items come as often as stated."""
    rows = 3000
    random = np.random.default_rng(2)
    item = np.minimum(random.geometric(0.25, rows), 12)
    columns = {"user": np.arange(rows) % 50, "item": item, "time": np.arange(rows) + 1, "stars": np.ones(rows)}
    columns |= {"price": None, "shop": None}
    split = {"by_time": {"validation": 2000, "test": 2500}}
    for by in ("uniform", "popularity"):
        rule = {"per_positive": 1, "by": by}
        prepare(write(columns, negatives=rule, split=split, **CLICKS), tmp_path / by)
        found = samples(tmp_path / by)
        items = raws(tmp_path / by, "item")[found["item"]]
        drawn = np.bincount(items[found["label"] == 0].astype(int), minlength=13)[1:] / rows
        share = np.bincount(item, minlength=13)[1:] / rows
        # A click's own item is never drawn: p_i * sum over other clicks j of share_j / (1 - p_j).
        p = np.full(12, 1 / 12) if by == "uniform" else share
        odds = share / (1 - p)
        np.testing.assert_allclose(drawn, p * (odds.sum() - odds), atol=0.03)


def test_a_click_and_its_negatives_stand_in_one_split(write, tmp_path):
    rule = {"per_positive": 2, "by": "uniform"}
    prepare(write(negatives=rule, **CLICKS), tmp_path / "out")
    found = {split: samples(tmp_path / "out", [split]) for split in SPLITS}
    clicks = {split: (rows["label"] == 1).sum() for split, rows in found.items()}
    assert clicks == {"train": 12 * 24, "val": 12 * 3, "test": 12 * 3}
    for rows in found.values():
        moments = set(zip(rows["user"][rows["label"] == 1], rows["timestamp"][rows["label"] == 1]))
        assert set(zip(rows["user"], rows["timestamp"])) == moments


def test_training_reads_samples_with_more_columns(write, tmp_path):
    rule = {"per_positive": 2, "by": "popularity"}
    recipe = write(negatives=rule, downsample={"keep": 0.5}, session={"column": "shop"}, **CLICKS)
    prepare(recipe, tmp_path / "out")
    loader = BatchLoader(PreparedData(tmp_path / "out"), "train", batch_size=64, max_history=8, shuffle=True, seed=0)
    assert sum(len(batch.label_B) for batch in loader) == len(samples(tmp_path / "out", ["train"])["label"])


def test_every_row_that_was_read_is_accounted_for(write, tmp_path, log):
    """Read = accepted + rejected + taken out; negatives and thinned samples are counted apart."""
    time = log["time"].copy()
    time[:2], time[2:3] = 5, 99_999
    rules = {
        "timestamp": {"column": "time", "earliest": 1000, "latest": 2000},
        "deduplicate": {"same": ["user", "item"]},
        "users": {"min_events": 18},
        "negatives": {"per_positive": 2, "by": "uniform"},
        "downsample": {"keep": 0.5},
        "max_rejected": 0.1,
    }
    report = prepare(write({"time": time}, **rules, **CLICKS), tmp_path / "out")
    rows = report["rows"]
    assert rows["rejected"] == {
        "timestamp is before `earliest`, 1000": 2,
        "timestamp is after `latest`, 2000": 1,
    }
    assert rows["read"] == 360 == rows["accepted"] + 3 + sum(rows["removed"].values())
    assert rows["accepted"] == report["events"]
    assert rows["removed"].keys() == {"deduplicate", "users"}
    assert min(rows["removed"].values()) > 0
    of_samples = sum(split["samples"] for split in report["samples"].values())
    assert of_samples == rows["accepted"] + rows["drawn"] - rows["thinned"]
    assert rows["drawn"] > rows["thinned"] > 0
    page = (tmp_path / "out/report.html").read_text()
    assert "rows taken out by `deduplicate`" in page
    assert "negatives drawn" in page


def test_a_window_that_ends_before_it_begins(write, laser_prep, tmp_path):
    path = write(timestamp={"column": "time", "earliest": 9, "latest": 8})
    done = laser_prep("run", path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "timestamp: `earliest` 9 is after `latest` 8" in done.stderr


def test_the_same_files_give_the_same_bytes(write, tmp_path):
    path = write(negatives={"per_positive": 2, "by": "popularity"}, **CLICKS)
    for name in ("once", "again"):
        prepare(path, tmp_path / name)
    files = [sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*")) for name in ("once", "again")]
    assert files[0] == files[1]
    for file in files[0]:
        if (tmp_path / "once" / file).is_file():
            assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
