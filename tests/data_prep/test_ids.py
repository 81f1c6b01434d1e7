"""Ids by hash, minimum counts, vocabularies of training rows, and shared codes for the rest."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.pipeline import prepare
from laser.schema import Schema
from laser.seqvault import SeqVault

SPLITS = ("train", "val", "test")
BY_TIME = {"by_time": {"validation": 1016, "test": 1024}}


def hashed(value: object, number: int) -> int:
    """Code of a value as the recipe's documentation has it."""
    return 1 + int(hashlib.md5(str(value).encode()).hexdigest()[:12], 16) % number


def column(folder: Path, name: str) -> list[Any]:
    return [value for split in SPLITS for value in pq.read_table(folder / f"samples/{split}")[name].to_pylist()]


def raw_column(log: dict[str, Any], name: str) -> list[Any]:
    """Raw values in the order of ``column``, for a split by time of all rows."""
    order = np.lexsort((np.arange(len(log["time"])), log["time"]))
    return [log[name][i] for i in order]


def dictionary(folder: Path, name: str) -> dict[Any, int]:
    return {row["raw"]: row["code"] for row in pq.read_table(folder / f"ids/{name}.parquet").to_pylist()}


def test_hash_is_the_documented_one(write, log, tmp_path):
    words = [[None, "Öst", "a|b", "", "x" * 300][i % 5] for i in range(len(log["user"]))]
    context = {"word": {"column": "word", "hash": 50, "width": 4}, "cell": {"column": "user", "hash": 7, "width": 4}}
    report = prepare(write({"word": words}, context=context, split=BY_TIME), tmp_path / "out")
    raw = raw_column(log | {"word": words}, "word")
    assert column(tmp_path / "out", "word") == [0 if word is None else hashed(word, 50) for word in raw]
    assert column(tmp_path / "out", "cell") == [hashed(user, 7) for user in raw_column(log, "user")]
    schema = Schema.load(tmp_path / "out/schema.json")
    assert (schema["word"].cardinality, schema["cell"].cardinality) == (51, 8)
    assert sorted(path.stem for path in (tmp_path / "out/ids").iterdir()) == ["item", "stars", "user"]
    found = report["ids"]["cell"]
    assert (found["hash"], found["values"], found["own"], found["shared"], found["unknown"]) == (7, 12, 0, 12, 0)
    assert found["codes_used"] == len({hashed(user, 7) for user in log["user"]})
    assert report["ids"]["word"]["samples"]["train"]["unknown"] == pytest.approx(0.2, abs=0.1)
    assert report["ids"].keys() == {"word", "cell"}


def test_hashed_items(write, log, laser_prep, tmp_path):
    """History, samples and side info agree on the code; items that share one have the side info of all."""
    item = {"column": "item", "hash": 13, "width": 4}
    side = {"shops": {"column": "shop", "from_log": True, "length": 3, "width": 4}}
    report = prepare(write(item=item, item_side=side, split=BY_TIME), tmp_path / "out")
    assert column(tmp_path / "out", "item") == [hashed(item, 13) for item in raw_column(log, "item")]
    users = dictionary(tmp_path / "out", "user")
    with SeqVault.open(tmp_path / "out/vault") as vault:
        history = vault.read(np.array([users[10]]))["item"].tolist()
    rows = np.lexsort((np.arange(len(log["time"])), log["time"]))
    assert history == [hashed(log["item"][i], 13) for i in rows if log["user"][i] == 10]
    items = pq.read_table(tmp_path / "out/items.parquet")
    assert items.column_names == ["item", "shops"]
    assert items.num_rows == 14
    shops = dictionary(tmp_path / "out", "shops")
    codes = np.array([hashed(item, 13) for item in log["item"]])
    for row in items.to_pylist():
        counts = Counter(log["shop"][codes == row["item"]].tolist())
        ranked = sorted(counts, key=lambda shop: (-counts[shop], shop))
        assert row["shops"] == [shops[shop] for shop in ranked] + [0] * (3 - len(ranked))
    assert report["items"] == report["items_in_log"] == len(np.unique(log["item"]))
    assert report["side_info_known"] == {"shops": 1.0}
    assert laser_prep("check", tmp_path / "out").returncode == 0
    shown = laser_prep("inspect", tmp_path / "out", "--user", "10")
    assert shown.returncode == 0, shown.stderr
    assert f"#{history[-1]}" in shown.stdout


@pytest.mark.parametrize("buckets", [None, 3])
def test_minimum_count(write, log, laser_prep, tmp_path, buckets):
    """Rare items are unknown or share codes; the check takes that for no fault, also with ties over two splits."""
    often = {item for item, count in Counter(log["item"].tolist()).items() if count >= 15}
    assert 0 < len(often) < len(np.unique(log["item"]))
    item = {"column": "item", "min_count": 15, "width": 4} | ({"oov_buckets": buckets} if buckets else {})
    side = {"shops": {"column": "shop", "from_log": True, "width": 4}}
    report = prepare(write(item=item, item_side=side), tmp_path / "out")
    codes = {item: code for code, item in enumerate(sorted(often), 1)}
    assert dictionary(tmp_path / "out", "item") == codes
    rest = (lambda item: len(often) + hashed(item, buckets)) if buckets else (lambda item: 0)
    wanted = Counter(codes.get(item, rest(item)) for item in log["item"].tolist())
    assert Counter(column(tmp_path / "out", "item")) == wanted
    items = pq.read_table(tmp_path / "out/items.parquet")
    assert items["raw"].to_pylist() == [None, *sorted(often), *[None] * (buckets or 0)]
    assert items["shops"][0].as_py() == 0
    assert Schema.load(tmp_path / "out/schema.json").item.cardinality == items.num_rows
    found = report["ids"]["item"]
    rare = len(np.unique(log["item"])) - len(often)
    assert (found["own"], found["shared"], found["unknown"]) == (len(often), *((rare, 0) if buckets else (0, rare)))
    assert report["items"] == len(np.unique(log["item"]))
    total = sum(report["samples"][split]["samples"] * found["samples"][split]["own"] for split in SPLITS)
    assert total == pytest.approx(np.isin(log["item"], list(often)).sum())
    assert json.loads((tmp_path / "out/report.json").read_text())["ids"] == report["ids"]
    done = laser_prep("check", tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_vocabulary_of_training(write, log, tmp_path):
    """Only what training sees: its samples, and events before a training sample of their user."""
    item = {"column": "item", "vocabulary": "train", "width": 4}
    stars = {"stars": {"column": "stars", "vocabulary": "train", "width": 4}}
    late = log["time"] >= 1016
    item_raw = np.where(late & (log["item"] % 3 == 0), log["item"] + 1000, log["item"])
    rated = np.where(log["time"] == 1000, 9.0, np.where(late, log["stars"], 1.0))
    changes = {"item": item_raw, "stars": rated}
    target = {"where": "stars < 9"}  # ratings of 9 are events and no samples
    recipe = write(changes, item=item, event_side=stars, split=BY_TIME, target=target, label={"expression": "shop = 1"})
    report = prepare(recipe, tmp_path / "out")
    assert dictionary(tmp_path / "out", "item").keys() == set(item_raw[~late].tolist())
    assert dictionary(tmp_path / "out", "stars").keys() == {1.0, 9.0}
    unknown = [code == 0 for code in column(tmp_path / "out", "item")]
    known = dictionary(tmp_path / "out", "item")
    kept = raw_column(changes | {"time": log["time"]}, "item")[int((rated == 9).sum()) :]
    assert unknown == [item not in known for item in kept]
    assert any(unknown)
    assert report["ids"]["item"]["samples"]["train"] == {"own": 1.0, "shared": 0.0, "unknown": 0.0}
    assert report["ids"]["item"]["samples"]["test"]["unknown"] > 0


def test_vocabulary_of_the_item_table(write, log, tmp_path):
    """Values of items in training rows, counted over those; a rare one takes no place in a list."""
    late = log["time"] >= 1016
    item_raw = np.where(late & (log["item"] % 3 == 0), log["item"] + 1000, log["item"])
    every = np.unique(item_raw)
    tags = [f"all|t{item % 7}" + ("|new" if item > 1000 else "|only" if item == every[0] else "") for item in every]
    pq.write_table(pa.table({"key": every, "tags": tags}), tmp_path / "items.parquet")
    rule = {"vocabulary": "train", "min_count": 2}
    side = {"tags": {"column": "tags", "split": "|", "length": 2, "width": 4} | rule}
    table = {"source": {"files": "items.parquet"}, "key": {"column": "key"}}
    prepare(write({"item": item_raw}, item_table=table, item_side=side, split=BY_TIME), tmp_path / "out")
    trained = set(item_raw[~late].tolist())
    counts = Counter(f"t{item % 7}" for item in trained)
    assert dictionary(tmp_path / "out", "tags").keys() == {"all"} | {tag for tag in counts if counts[tag] > 1}
    known = dictionary(tmp_path / "out", "tags")
    for row in pq.read_table(tmp_path / "out/items.parquet").to_pylist()[1:]:
        assert row["tags"] == [known["all"], known.get(f"t{row['raw'] % 7}", 0)]


def test_few_hashed_contexts_have_a_page(write, tmp_path):
    """The data report shows features of few values one by one, here without their names."""
    prepare(write(context={"shop": {"column": "shop", "hash": 5, "width": 4}}), tmp_path / "out")
    assert "shop" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"hash": 0}, "`hash` is 0; expected a number of codes from 1 to 4294967294"),
        ({"hash": 9, "min_count": 3}, "`hash` gives every value a code, so `min_count: 3` has no meaning beside it"),
        ({"buckets": 4, "hash": 9}, "`buckets` codes a number without its values, so `hash: 9` has no meaning beside"),
        ({"min_count": 0}, "`min_count` is 0; expected at least 1"),
        ({"oov_buckets": 0, "min_count": 2}, "`oov_buckets` is 0; expected at least 1, or leave it out"),
        (
            {"oov_buckets": 4},
            "`oov_buckets` would stay empty, as every value of the log has a code of its own; add `min_count` or "
            "`vocabulary: train`",
        ),
        ({"vocabulary": "test"}, "vocabulary is 'test'; expected one of log, train"),
        ({"min_count": 999}, "`min_count: 999` of 'shop' leaves no value with a code; lower it"),
        (
            {"column": "price", "hash": 9},
            "feature 'shop' is hashed but has type float64; expected whole numbers or text, so convert it by CAST in "
            "an expression",
        ),
        (
            {"hash": 9, "table": "item"},
            "'item' and 'shop' share table 'item', but their keys for ids differ (none and {'hash': 9}); give both "
            "the same",
        ),
    ],
)
def test_refused(write, laser_prep, tmp_path, keys, sentence):
    recipe = write(context={"shop": {"column": "shop", "width": 4} | keys})
    done = laser_prep("run", recipe, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(sentence), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_users_keep_a_code_each(write, laser_prep, tmp_path):
    done = laser_prep("run", write(user={"column": "user", "hash": 100}), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "`user` has `hash`, which would join the histories of several users; give it to a context" in done.stderr
