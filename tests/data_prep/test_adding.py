"""One more day: a data set that grew equals one made of everything, and what was there stays as it was."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.adding import LATE, Period, extend
from data_prep.cli import main
from data_prep.pipeline import prepare
from laser.data.columns import read_columns
from laser.schema import Schema
from laser.seqvault import SeqVault
from laser.seqvault.layout import Layout

SPLITS = ("train", "val", "test")
MIDNIGHT = 1020
RECIPE: dict[str, Any] = {
    "split": {"by_time": {"validation": 1008, "test": 1014}},
    "item_table": {"source": {"files": "items.parquet"}, "key": {"column": "item"}},
    "item_side": {"shop": {"column": "shop", "width": 2}},
}
Days = Callable[..., tuple[Path, Path, Path]]


@pytest.fixture
def days(tmp_path: Path, log: dict[str, np.ndarray], recipe_data: dict[str, Any]) -> Days:
    """Writes a recipe and folders with the first day and the second, in which a user and an item are new."""

    def write(**recipe: Any) -> tuple[Path, Path, Path]:
        log_2 = {name: values.copy() for name, values in log.items() if name != "shop"}
        late = log_2["time"] >= MIDNIGHT
        log_2["user"][late & (log_2["user"] == 50)] = 5
        log_2["item"][late & (log_2["item"] == 103)] = 999
        for name, rows, items in (("first", ~late, range(100, 125)), ("second", late, [*range(100, 125), 999])):
            (tmp_path / name).mkdir()
            pq.write_table(pa.table(log_2).filter(pa.array(rows)), tmp_path / name / "log.parquet")
            shops = pa.table({"item": list(items), "shop": [item % 4 + (item == 999) for item in items]})
            pq.write_table(shops, tmp_path / name / "items.parquet")
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe_data | RECIPE | recipe))
        return path, tmp_path / "first", tmp_path / "second"

    return write


def raw_of(folder: Path, name: str) -> dict[int, Any]:
    return {row["code"]: row["raw"] for row in pq.read_table(folder / f"ids/{name}.parquet").to_pylist()}


def histories(folder: Path) -> dict[Any, list[tuple[Any, ...]]]:
    """Raw user -> events in raw values."""
    user, item, stars = (raw_of(folder, name) for name in ("user", "item", "stars"))
    with SeqVault.open(folder / "vault") as vault:
        assert vault.check() == []
        users = np.sort(vault.users())
        found = vault.read(users)
    columns = zip(found["timestamp"], found["item"], found["stars"], strict=True)
    events = [(int(t), item[int(i)], stars[int(s)]) for t, i, s in columns]
    return {
        user[int(u)]: events[first:last]
        for u, first, last in zip(users, found.offsets, found.offsets[1:], strict=False)
    }


def samples(folder: Path, split: str) -> list[tuple[Any, ...]]:
    """Samples of a split in order, user and item in raw values."""
    user, item = raw_of(folder, "user"), raw_of(folder, "item")
    table = pq.read_table(folder / "samples" / split).to_pydict()
    assert table["row"] == list(range(len(table["row"])))
    columns = zip(table["user"], table["item"], table["timestamp"], table["label"], strict=True)
    return [(user[u], item[i], t, label) for u, i, t, label in columns]


def shops(folder: Path) -> dict[Any, Any]:
    table, shop = pq.read_table(folder / "items.parquet").to_pydict(), raw_of(folder, "shop")
    return {raw: shop.get(code) for raw, code in zip(table["raw"], table["shop"], strict=True)}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


def both(first: Path, second: Path, folder: Path) -> Path:
    """A raw folder with the rows of both days."""
    folder.mkdir()
    tables = [pq.read_table(day / "log.parquet") for day in (first, second)]
    pq.write_table(pa.concat_tables(tables), folder / "log.parquet")
    pq.write_table(pq.read_table(second / "items.parquet"), folder / "items.parquet")
    return folder


def test_two_days_equal_one_run(days: Days, tmp_path: Path) -> None:
    recipe, first, second = days()
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    prepare(recipe, grown, raw=first)
    before = digests(grown)
    added = extend(recipe, grown, second)
    report = prepare(recipe, whole, raw=both(first, second, tmp_path / "both"))

    assert histories(grown) == histories(whole)
    for split in SPLITS:
        assert sorted(samples(grown, split)) == sorted(samples(whole, split)), split
    assert shops(grown) == shops(whole)
    after = digests(grown)
    old_samples = [path for path in before if path.startswith("samples/")]
    assert all(after[path] == before[path] for path in old_samples)
    assert len([path for path in after if path.startswith("samples/")]) == len(old_samples) + 1

    mine = json.loads((grown / "report.json").read_text())
    for key in ("rows", "users", "items", "items_in_log", "events", "side_info_known"):
        assert mine[key] == report[key], key
    for split in SPLITS:
        for key in ("samples", "label_share", "with_own_event", "first", "last"):
            assert mine["samples"][split][key] == pytest.approx(report["samples"][split][key]), (split, key)
    assert added["users"] == 1
    assert added["items"] == 1
    assert added["events"] == added["rows"]["read"] == added["samples"]["test"]
    assert "log.parquet" in added["files"]


def test_codes_keep_their_meaning(days: Days, tmp_path: Path) -> None:
    recipe, first, second = days()
    prepare(recipe, tmp_path / "out", raw=first)
    before = {name: raw_of(tmp_path / "out", name) for name in ("user", "item", "stars", "shop")}
    extend(recipe, tmp_path / "out", second)
    for name, known in before.items():
        after = raw_of(tmp_path / "out", name)
        assert {code: after[code] for code in known} == known, name
    assert raw_of(tmp_path / "out", "item")[len(before["item"]) + 1] == 999


def test_a_reader_of_the_old_data_set_goes_on(days: Days, tmp_path: Path) -> None:
    recipe, first, second = days()
    prepare(recipe, tmp_path / "out", raw=first)
    expected = histories(tmp_path / "out")
    with SeqVault.open(tmp_path / "out" / "vault") as reader:
        users = np.sort(reader.users())
        extend(recipe, tmp_path / "out", second)
        found = reader.read(users)
        assert int(found.lengths.sum()) == sum(map(len, expected.values()))
        assert reader.check() == []


def test_added_twice_is_added_once(days: Days, laser_prep: Callable[..., Any], tmp_path: Path) -> None:
    recipe, first, second = days()
    prepare(recipe, tmp_path / "out", raw=first)
    command = ("add", recipe, "--to", tmp_path / "out", "--raw", second)
    done = laser_prep(*command)
    assert done.returncode == 0, done.stderr
    assert "added 120 events, 1 users, 1 items; samples: 0 train, 0 val, 120 test" in done.stdout
    before = digests(tmp_path / "out")
    again = laser_prep(*command)
    assert again.returncode == 0, again.stderr
    assert "already added, nothing to do: log.parquet" in again.stdout
    assert digests(tmp_path / "out") == before
    assert "log.parquet" in (tmp_path / "out/report.html").read_text()


def test_three_days_and_a_gap_before_the_new_samples(days: Days, tmp_path: Path) -> None:
    recipe, first, second = days()
    prepare(recipe, tmp_path / "out", raw=first)
    rows = pq.read_table(second / "log.parquet")
    later = rows["time"].to_numpy() >= 1024
    third = tmp_path / "third"
    third.mkdir()
    pq.write_table(rows.filter(pa.array(~later)), second / "log.parquet")
    pq.write_table(rows.filter(pa.array(later)), third / "log.parquet")
    pq.write_table(pq.read_table(second / "items.parquet"), third / "items.parquet")
    extend(recipe, tmp_path / "out", second)
    added = extend(recipe, tmp_path / "out", third, period=Period(first=1028))
    assert added["samples"]["test"] == 12 * 2
    assert added["events"] == 12 * 6
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [addition["after"] for addition in report["additions"]] == [1018, 1022]
    assert report["events"] == 360


def test_late_rows(days: Days, laser_prep: Callable[..., Any], tmp_path: Path) -> None:
    recipe, first, second = days(max_rejected=0.5)
    prepare(recipe, tmp_path / "out", raw=first)
    before = digests(tmp_path / "out")
    rows = pa.concat_tables([pq.read_table(second / "log.parquet"), pq.read_table(first / "log.parquet").slice(0, 7)])
    pq.write_table(rows, second / "log.parquet")
    command = ("add", recipe, "--to", tmp_path / "out", "--raw", second)
    refused = laser_prep(*command)
    assert refused.returncode == 2
    assert "7 of 127 new rows are not after 1018" in refused.stderr
    assert digests(tmp_path / "out") == before
    assert laser_prep(*command, "--late", "reject").returncode == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["rows"]["rejected"] == {LATE: 7}
    reasons = pq.read_table(tmp_path / "out/rejected")
    assert len(reasons) == 7


def test_hashed_features(days: Days, tmp_path: Path) -> None:
    """A hash needs nothing of before: two days equal one run. An item's code keeps the side info that it has."""
    stars = {"expression": "CAST(stars AS BIGINT)", "hash": 3, "width": 4}
    recipe, first, second = days(
        item={"column": "item", "width": 4, "hash": 40},
        event_side={"stars": stars},
        context={"person": {"column": "user", "hash": 9}},
    )
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    prepare(recipe, grown, raw=first)
    side = pq.read_table(grown / "items.parquet")
    added = extend(recipe, grown, second)
    report = prepare(recipe, whole, raw=both(first, second, tmp_path / "both"))
    for split in SPLITS:
        one, other = (pq.read_table(folder / "samples" / split).to_pydict() for folder in (grown, whole))
        user = {folder: raw_of(folder, "user") for folder in (grown, whole)}
        for name in ("item", "person", "timestamp", "label"):
            assert sorted(zip(map(user[grown].get, one["user"]), one["timestamp"], one[name], strict=True)) == sorted(
                zip(map(user[whole].get, other["user"]), other["timestamp"], other[name], strict=True)
            ), (split, name)
    with SeqVault.open(grown / "vault") as one, SeqVault.open(whole / "vault") as other:
        assert one.check() == []
        mine, theirs = one.read(np.sort(one.users())), other.read(np.sort(other.users()))
    for name in ("item", "stars"):
        assert np.bincount(mine[name]).tolist() == np.bincount(theirs[name]).tolist()
    after = pq.read_table(grown / "items.parquet")
    assert len(after) == len(side) == 41
    before, now = (np.asarray(table["shop"]) for table in (side, after))
    assert (now[before > 0] == before[before > 0]).all()
    codes = np.unique(theirs["item"])
    assert (now[codes] > 0).all(), "every item that occurs has its shop"
    mine_told = json.loads((grown / "report.json").read_text())
    assert mine_told["items_in_log"] == mine_told["items"] == len(codes)
    assert added["items"] == len(codes) - len(np.unique(theirs["item"][theirs["timestamp"] < MIDNIGHT]))
    assert mine_told["users"] == report["users"]


def test_codes_that_outgrow_their_type(days: Days, tmp_path: Path) -> None:
    """More than 255 items and prices after the second day: the stored types grow, and what was stored stays."""
    recipe, first, second = days(event_side={"stars": {"column": "stars", "width": 4}, "cost": {"column": "cost"}})
    days_of = [pq.read_table(folder / "log.parquet") for folder in (first, second)]
    days_of[1] = pa.concat_tables([days_of[1]] * 4)
    for folder, rows, values in ((first, days_of[0], 5), (second, days_of[1], 400)):
        number = np.arange(len(rows))
        rows = rows.append_column("cost", pa.array(number % values))
        if folder == second:
            items = rows["item"].to_numpy() + 1000 * number
            rows = rows.set_column(rows.column_names.index("item"), "item", pa.array(items))
            pq.write_table(pa.table({"item": items, "shop": items % 4}), folder / "items.parquet")
        pq.write_table(rows, folder / "log.parquet")
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    prepare(recipe, grown, raw=first)
    before = Schema.load(grown / "schema.json")
    extend(recipe, grown, second)
    prepare(recipe, whole, raw=both(first, second, tmp_path / "both"))
    after = Schema.load(grown / "schema.json")
    assert [(before[name].dtype, after[name].dtype) for name in ("item", "cost")] == [("uint8", "uint16")] * 2
    assert histories(grown) == histories(whole)
    costs = raw_of(grown, "cost")
    with SeqVault.open(grown / "vault") as vault:
        assert vault.layout.fields == Layout.of(after).fields
        found = vault.read(vault.users())["cost"]
    assert sorted(costs[int(code)] for code in found) == sorted(
        cost for day in (first, second) for cost in pq.read_table(day / "log.parquet")["cost"].to_pylist()
    )
    assert not list(grown.glob("vault.*"))
    # What was kept in the narrow type is read beside the new files, for training too.
    assert main(["inspect", str(grown), "--user", "10"]) == 0
    told = json.loads((whole / "report.json").read_text())["samples"]["test"]
    read = read_columns(sorted((grown / "samples/test").glob("*.parquet")), [after.item])["item"]
    assert (read.dtype, len(read)) == (np.uint16, told["samples"])


KILLED = """
import os, signal, sys
from pathlib import Path
from data_prep import adding, staging
from laser.seqvault import SeqVault
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
point, recipe, out, raw = sys.argv[1:]
place, name = {
    "linked": (adding.Present, "occurring_items"),
    "items": (adding, "write_dictionaries"),
    "vault": (SeqVault, "load"),
    "samples": (adding, "write_samples"),
    "report": (adding, "write_report"),
    "sync": (staging, "_sync"),
    "switch": (staging, "_replace"),
}[point]
if point == "linked":
    adding.Present.link_into, before = (lambda self, target: (before(self, target), kill())), adding.Present.link_into
elif point == "vault":
    before = SeqVault.load
    SeqVault.load = lambda *a, **k: (before(*a, **k), kill())
else:
    setattr(place, name, kill)
adding.extend(Path(recipe), Path(out), Path(raw))
"""


@pytest.mark.parametrize("point", ["linked", "items", "vault", "samples", "report", "sync", "switch"])
def test_killed_addition_changes_nothing_and_a_repeat_finishes(days: Days, tmp_path: Path, point: str) -> None:
    recipe, first, second = days()
    out = tmp_path / "data" / "out"
    prepare(recipe, out, raw=first)
    before = digests(out)
    command = [sys.executable, "-c", KILLED, point, str(recipe), str(out), str(second)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert digests(out) == before
    extend(recipe, out, second)
    assert sum(map(len, histories(out).values())) == 360
    assert os.listdir(tmp_path / "data") == ["out"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"split": {"per_user": {"validation": 0.1, "test": 0.1}}}, "split `per_user` cannot be extended"),
        ({"event_side": {"stars": {"column": "stars", "width": 4, "min_count": 2}}}, "'stars' has `min_count`"),
        ({"event_side": {"stars": {"column": "stars", "vocabulary": "train"}}}, "'stars' has `vocabulary`"),
        ({"users": {"min_events": 2}}, "`users` cannot be extended"),
        ({"deduplicate": {"same": ["user", "item"]}}, "`deduplicate` cannot be extended"),
        ({"target": {"where": "row_number() OVER (PARTITION BY user ORDER BY time) > 1"}}, "looks at other rows"),
    ],
)
def test_recipes_that_need_the_whole_log(
    days: Days, laser_prep: Callable[..., Any], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    recipe, first, second = days(**change)
    data = {key: value for key, value in yaml.safe_load(recipe.read_text()).items() if value is not None}
    recipe.write_text(yaml.safe_dump(data))
    prepare(recipe, tmp_path / "out", raw=first)
    refused = laser_prep("add", recipe, "--to", tmp_path / "out", "--raw", second)
    assert refused.returncode == 2, refused.stdout
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_mistakes(days: Days, laser_prep: Callable[..., Any], tmp_path: Path) -> None:
    recipe, first, second = days()
    prepare(recipe, tmp_path / "out", raw=first)

    def refused(said: str, *arguments: Any, to: Path = tmp_path / "out") -> None:
        done = laser_prep("add", recipe, "--to", to, *arguments)
        assert done.returncode == 2, done.stdout
        assert said in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr

    refused("no report.json in --to", "--raw", second, to=tmp_path / "second")
    refused("is not before --test_end", "--raw", second, "--test_from", 1025, "--test_end", 1025)
    refused("log.parquet", "--raw", tmp_path / "out")
    with SeqVault.open(tmp_path / "out/vault", "a"):
        refused("is open for writing in process", "--raw", second)
    before = digests(tmp_path / "out")
    recipe.write_text(recipe.read_text().replace("stars >= 4", "stars >= 3"))
    refused("`label.expression` is 'stars >= 3', was 'stars >= 4'", "--raw", second)
    assert digests(tmp_path / "out") == before
