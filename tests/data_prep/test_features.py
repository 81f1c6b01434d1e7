"""What a recipe can say: splits, conditions, buckets, missing values, side info from the log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.pipeline import prepare
from laser.schema import Schema
from laser.seqvault import SeqVault


def samples(folder: Path, split: str) -> dict[str, np.ndarray]:
    table = pq.read_table(folder / "samples" / split)
    return {name: table[name].to_numpy() for name in table.column_names}


def dictionary(folder: Path, name: str) -> dict[int, object]:
    return {row["code"]: row["raw"] for row in pq.read_table(folder / f"ids/{name}.parquet").to_pylist()}


def test_same_inputs_give_same_samples(write, tmp_path):
    recipe = write()
    for name in ("first", "second"):
        prepare(recipe, tmp_path / name)
    for path in [*sorted((tmp_path / "first").rglob("*.parquet")), tmp_path / "first/report.json"]:
        again = tmp_path / "second" / path.relative_to(tmp_path / "first")
        assert path.read_bytes() == again.read_bytes(), path


def test_conditions_of_target_and_history(write, log, tmp_path):
    where = {"target": {"where": "shop = 1"}, "history": {"where": "stars > 3"}}
    report = prepare(write(**where), tmp_path / "out")
    assert report["events"] == (log["stars"] > 3).sum()
    found = [samples(tmp_path / "out", split) for split in ("train", "val", "test")]
    assert sum(len(f["row"]) for f in found) == (log["shop"] == 1).sum()
    users = dictionary(tmp_path / "out", "user")
    ratings = dictionary(tmp_path / "out", "stars")
    with SeqVault.open(tmp_path / "out/vault") as vault:
        read = vault.read(found[2]["user"].astype(np.int64), before=found[2]["timestamp"])
    assert {ratings[code] for code in read["stars"].tolist()} == {4.0, 5.0}
    for index, (user, time) in enumerate(zip(found[2]["user"], found[2]["timestamp"])):
        wanted = (log["user"] == users[int(user)]) & (log["time"] < time) & (log["stars"] > 3)
        assert read.lengths[index] == wanted.sum()


def test_window_over_log_rows(write, log, tmp_path):
    """A condition may look at the user's previous row."""
    where = 'item IS DISTINCT FROM lag(item) OVER (PARTITION BY "user" ORDER BY "time", log_row)'
    report = prepare(write(target={"where": where}), tmp_path / "out")
    order = np.lexsort((np.arange(len(log["user"])), log["time"], log["user"]))
    user, item = log["user"][order], log["item"][order]
    changed = np.r_[True, (user[1:] != user[:-1]) | (item[1:] != item[:-1])]
    assert sum(found["samples"] for found in report["samples"].values()) == changed.sum() < len(user)


def test_split_by_value(write, log, tmp_path):
    by_value = {"expression": '"user" // 10 % 4', "train": [0, 1], "validation": [2], "test": [3]}
    report = prepare(write(split={"by_value": by_value}), tmp_path / "out")
    assert report["split"] == {"way": "by_value", "users_disjoint": True}
    users = dictionary(tmp_path / "out", "user")
    for split, folds in (("train", {0, 1}), ("val", {2}), ("test", {3})):
        assert {users[int(code)] // 10 % 4 for code in samples(tmp_path / "out", split)["user"]} == folds
    assert report["samples"]["test"]["user_not_in_train"] == 1.0


def test_split_by_time(write, log, tmp_path):
    report = prepare(write(split={"by_time": {"validation": 1010, "test": 1020, "end": 1026}}), tmp_path / "out")
    time = log["time"]
    wanted = {"train": time < 1010, "val": (time >= 1010) & (time < 1020), "test": (time >= 1020) & (time < 1026)}
    assert {name: found["samples"] for name, found in report["samples"].items()} == {
        name: inside.sum() for name, inside in wanted.items()
    }
    assert report["events"] == len(time)


def test_buckets_from_training_rows_only(write, log, tmp_path):
    """Later rows must not move the bounds: the same bounds come out when they are changed."""
    late = log["time"] >= 1020
    price = np.where(late, log["price"] + 100, log["price"])
    price[5] = np.nan
    split = {"by_time": {"validation": 1020, "test": 1024}}
    context = {"price": {"column": "price", "buckets": 4, "width": 4}}
    bounds = []
    for name, columns in (("first", {"price": price}), ("second", {"price": np.where(late, -price, price)})):
        prepare(write(columns, split=split, context=context), tmp_path / name)
        bounds.append(dictionary(tmp_path / name, "price"))
    assert bounds[0] == bounds[1]
    inner = [bounds[0][code] for code in (2, 3, 4)]
    early = price[~late & ~np.isnan(price)]
    np.testing.assert_allclose(inner, np.quantile(early, [0.25, 0.5, 0.75]))
    train = samples(tmp_path / "first", "train")
    order = np.lexsort((np.arange(len(price)), log["time"]))
    order = order[~late[order]]
    codes = np.where(np.isnan(price), 0, 1 + np.searchsorted(inner, price, side="right"))
    assert train["price"].tolist() == codes[order].tolist()
    assert Schema.load(tmp_path / "first/schema.json")["price"].cardinality == 5


def test_missing_values_are_unknown(write, tmp_path):
    shop = {"shop": {"column": "shop", "missing": ["2"], "width": 4}}
    prepare(write(context=shop), tmp_path / "out")
    assert dictionary(tmp_path / "out", "shop") == {1: 0, 2: 1}
    assert set(samples(tmp_path / "out", "train")["shop"]) == {0, 1, 2}


def test_item_side_info_from_the_log(write, log, tmp_path):
    """The item's most frequent values first, in the table of a context feature with the same ids."""
    side = {"shops": {"column": "shop", "from_log": True, "table": "shop", "length": 2, "width": 4}}
    context = {"target_shop": {"column": "shop", "table": "shop", "width": 4}}
    prepare(write(item_side=side, context=context), tmp_path / "out")
    shops = dictionary(tmp_path / "out", "shops")
    for row in pq.read_table(tmp_path / "out/items.parquet").to_pylist()[1:]:
        counts = np.bincount(log["shop"][log["item"] == row["raw"]], minlength=3)
        wanted = sorted(np.flatnonzero(counts), key=lambda shop: (-counts[shop], shop))[:2]
        assert [shops[code] for code in row["shops"] if code] == wanted
    assert Schema.load(tmp_path / "out/schema.json").tables["shop"].features == ("shops", "target_shop")


def test_ids_of_text_and_of_64_bits(write, log, tmp_path):
    names = np.array([f"user {number}" for number in log["user"]])
    huge = log["item"].astype(np.uint64) + np.uint64(2**63)
    prepare(write({"user": names, "item": huge}), tmp_path / "out")
    assert dictionary(tmp_path / "out", "user")[1] == "user 10"
    assert sorted(dictionary(tmp_path / "out", "item").values()) == np.unique(huge).tolist()


def test_files_in_one_log_keep_their_order(write, tmp_path, log):
    """Equal timestamps fall back on the order of rows over many row groups and files."""
    rows = 40_000
    items = np.arange(rows) + 1
    for part in range(2):
        piece = slice(part * rows // 2, (part + 1) * rows // 2)
        columns = {"user": np.ones(rows // 2, int), "item": items[piece], "time": np.full(rows // 2, 5)}
        table = pa.table(columns | {"stars": (items[piece] % 5 + 1).astype(float)})
        (tmp_path / "parts").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"parts/{part}.parquet", row_group_size=1000)
    prepare(write(log={"files": "parts/*.parquet"}), tmp_path / "out", threads=4)
    found = np.concatenate([samples(tmp_path / "out", split)["item"] for split in ("train", "val", "test")])
    assert found.tolist() == items.tolist()


def test_rejected_rows_are_kept(write, log, tmp_path):
    time, user, stars = log["time"].astype(float), log["user"].copy(), log["stars"].copy()
    time[3], user[5], stars[8] = np.nan, -4, np.nan
    report = prepare(write({"time": time, "user": user, "stars": stars}, max_rejected=0.01), tmp_path / "out")
    reasons = {3: "timestamp is missing", 5: "user id is negative", 8: "label is missing"}
    assert report["rows"] == {"read": 360, "accepted": 357, "rejected": dict.fromkeys(sorted(reasons.values()), 1)}
    rejected = pq.read_table(tmp_path / "out/rejected").to_pylist()
    assert {row["log_row"]: row["reason"] for row in rejected} == reasons
    assert rejected[1]["user"] == -4
    assert report["events"] == 357


@pytest.mark.parametrize("key", ["user", "log_row"])
def test_reserved_names(write, tmp_path, key):
    with pytest.raises(ValueError, match=f"'{key}' is reserved"):
        prepare(write(context={key: {"column": "shop"}}), tmp_path / "out")


def test_names_that_no_table_may_have(write, tmp_path):
    """But a feature, when it is not embedded or its table has another name."""
    with pytest.raises(ValueError, match="feature 'type' looks up table 'type', a name that PyTorch uses; set its"):
        prepare(write(context={"type": {"column": "shop", "width": 4}}), tmp_path / "out")
    prepare(write(context={"type": {"column": "shop", "width": 4, "table": "types"}}), tmp_path / "out")
    prepare(write(context={"type": {"column": "shop"}}), tmp_path / "other")
