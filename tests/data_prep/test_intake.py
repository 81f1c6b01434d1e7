"""Logs of any form: several files and formats as one history, times as text, tables joined by key and time."""

from __future__ import annotations

import gzip
import json
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.pipeline import prepare
from data_prep.recipe_sources import Timestamp
from data_prep.row_columns import CELL, UNPARSED
from data_prep.timestamps import with_ticks
from laser.seqvault import SeqVault

SPLITS = ("train", "val", "test")


def samples(folder) -> dict[str, np.ndarray]:
    table = pa.concat_tables([pq.read_table(folder / "samples" / split) for split in SPLITS])
    return {name: table[name].to_numpy() for name in table.column_names}


def raws(folder, name) -> np.ndarray:
    """Raw value by code; code 0 is None."""
    return np.array([None, *pq.read_table(folder / f"ids/{name}.parquet")["raw"].to_pylist()], object)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines(write, tmp_path, log, suffix):
    lines = [json.dumps({name: values[i].item() for name, values in log.items()}) for i in range(360)]
    text = "\n".join(lines).encode()
    packed = {"": text, ".gz": gzip.compress(text), ".zst": zstandard.compress(text)}[suffix]
    (tmp_path / f"log.jsonl{suffix}").write_bytes(packed)
    types = {"user": "int64", "item": "int64", "time": "int64", "stars": "float64"}
    prepare(write(), tmp_path / "parquet")
    prepare(write(log={"files": f"log.jsonl{suffix}", "types": types}), tmp_path / "json")
    for name, values in samples(tmp_path / "parquet").items():
        np.testing.assert_array_equal(samples(tmp_path / "json")[name], values)


def test_logs_with_other_names_and_types_become_one(write, tmp_path, log):
    """Rows keep (time, log, row) order; a column that a log lacks is unknown there."""
    first = log["shop"] == 0
    feed = {name: log[name][first] for name in ("user", "item", "time", "stars", "price")}
    pq.write_table(pa.table(feed), tmp_path / "feed.parquet")
    lines = ["uid;vid;ms;grade"] + [
        f"{u};{i};{t * 1000};{s * 10:.0f}"
        for u, i, t, s in zip(*(log[name][~first] for name in ("user", "item", "time", "stars")))
    ]
    (tmp_path / "search.csv").write_text("\n".join(lines))
    search = {
        "name": "search",
        "files": "search.csv",
        "delimiter": ";",
        "types": dict.fromkeys(["uid", "vid", "ms", "grade"], "int64"),
        "values": {"user": "uid", "item": "vid", "time": "ms // 1000", "stars": "grade / 10.0"},
    }
    recipe = write(
        log=[{"name": "feed", "files": "feed.parquet"}, search],
        context={"scenario": {"column": "log_name", "width": 4}, "dear": {"expression": "price > 0", "width": 4}},
    )
    report = prepare(recipe, tmp_path / "out")
    assert report["rows"]["read"] == 360
    found = samples(tmp_path / "out")
    scenario = raws(tmp_path / "out", "scenario")[found["scenario"]]
    assert (scenario == "feed").sum() == first.sum()
    assert ((found["dear"] == 0) == (scenario == "search")).all()
    merged = np.concatenate([np.flatnonzero(first), np.flatnonzero(~first)])
    users, items = raws(tmp_path / "out", "user"), raws(tmp_path / "out", "item")
    with SeqVault.open(tmp_path / "out/vault") as vault:
        for code, user in enumerate(users[1:], 1):
            rows = merged[log["user"][merged] == user]
            rows = rows[np.argsort(log["time"][rows], kind="stable")]
            assert items[vault.read(np.array([code]))["item"].astype(int)].tolist() == log["item"][rows].tolist()


def test_exploded_lists(write, tmp_path):
    """A page of items becomes a row per item, with its place on the page."""
    random = np.random.default_rng(0)
    pages = [random.integers(100, 120, random.integers(0, 5)).tolist() for _ in range(200)]
    marks = [random.integers(0, 2, len(page)).tolist() for page in pages]
    user, time = np.repeat(np.arange(1, 11), 20), np.arange(200) + 1000
    pages[7], marks[7] = None, None
    pq.write_table(pa.table({"user": user, "time": time, "shown": pages, "clicked": marks}), tmp_path / "pages.parquet")
    page = {"slot": {"column": "position", "width": 2}}
    recipe = write(
        log={"files": "pages.parquet", "explode": ["shown", "clicked"]},
        item={"column": "shown", "width": 4},
        label={"column": "clicked"},
        event_side={},
        context=page,
        split={"by_time": {"validation": 1150, "test": 1180}},
    )
    prepare(recipe, tmp_path / "out")
    found = samples(tmp_path / "out")
    wanted = [(t, i, k, m) for t, p, c in zip(time, pages, marks) for k, (i, m) in enumerate(zip(p or [], c or []))]
    items, slots = raws(tmp_path / "out", "item"), raws(tmp_path / "out", "slot")
    seen = zip(found["timestamp"], items[found["item"]], slots[found["slot"]], found["label"])
    assert sorted(seen) == sorted(wanted)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/New_York", "Australia/Lord_Howe"])
@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_times_as_text_equal_python(zone, unit):
    random = np.random.default_rng(1)
    start = datetime(1971, 1, 1)
    moments = [start + timedelta(microseconds=int(us)) for us in random.integers(0, 75 * 365 * 86400 * 10**6, 500)]
    # Both changes of New York in 2020: the hour that is skipped and the one that comes twice.
    moments += [datetime(2020, 3, 8, 2, 30), datetime(2020, 11, 1, 1, 30), datetime(2000, 2, 29, 23, 59, 59, 999999)]
    texts = [f"{moment:%d/%m/%Y %H:%M:%S.%f}" for moment in moments]
    con = ibis.duckdb.connect()
    table = con.create_table("times", pa.table({"text": texts, "naive": moments}))
    table = table.mutate(**{UNPARSED: ibis.null("string"), CELL: ibis.null("string")})
    options = {"unit": unit, "format": "%d/%m/%Y %H:%M:%S.%f", "zone": zone}
    for name in ("text", "naive"):
        table = with_ticks(table, Timestamp(column=name, **options), name + "_ticks")
    found = table.to_pyarrow()
    scale = {"s": 1, "ms": 10**3, "us": 10**6}[unit]
    for place, moment in enumerate(moments):
        whole = int(moment.replace(microsecond=0, tzinfo=ZoneInfo(zone)).timestamp())
        wanted = whole * scale + moment.microsecond * scale // 10**6
        assert (found["text_ticks"][place].as_py(), found["naive_ticks"][place].as_py()) == (wanted, wanted), texts[
            place
        ]


@pytest.mark.parametrize("text", ["2019-02-29 00:00:00", "2019-13-01 00:00:00", "2019-01-01 24:00:00", "2019-1-1", "x"])
def test_times_that_are_none(write, tmp_path, log, text):
    times = [f"{datetime(2020, 1, 1) + timedelta(seconds=int(t)):%Y-%m-%d %H:%M:%S}" for t in log["time"]]
    times[17] = text
    timestamp = {"column": "time", "format": "%Y-%m-%d %H:%M:%S", "unit": "ms", "zone": "Asia/Shanghai"}
    report = prepare(write({"time": times}, timestamp=timestamp), tmp_path / "out")
    assert report["rows"]["rejected"] == {"the time does not fit the format %Y-%m-%d %H:%M:%S": 1}
    assert pq.read_table(tmp_path / "out/rejected")["cell"].to_pylist() == [text]
    shanghai = int(datetime(2019, 12, 31, 16).replace(tzinfo=ZoneInfo("UTC")).timestamp()) * 1000
    assert set(samples(tmp_path / "out")["timestamp"]) == {shanghai + t * 1000 for t in np.delete(log["time"], 17)}


def test_dates_and_zoned_columns(write, tmp_path, log):
    moments = pa.array([datetime(2020, 1, 1) + timedelta(days=int(t) - 1000) for t in log["time"]])
    first = 1577836800
    for column in (moments, moments.cast(pa.timestamp("us", "America/New_York")), moments.cast(pa.date32())):
        prepare(write({"time": column}), tmp_path / "out")
        assert set(samples(tmp_path / "out")["timestamp"]) == {first + (t - 1000) * 86400 for t in log["time"]}


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../etc"])
def test_unknown_zone_and_format(write, tmp_path, zone):
    with pytest.raises(ValueError, match=f"`zone` is '{zone}'"):
        prepare(write(timestamp={"column": "time", "zone": zone}), tmp_path / "out")
    with pytest.raises(ValueError, match="`format` has '%b'"):
        prepare(write(timestamp={"column": "time", "format": "%d-%b-%Y"}), tmp_path / "out")


def test_value_as_of_the_time_strictly_before(write, tmp_path, log):
    """Each row gets the newest price from before its own time, as an event's and as a sample's field."""
    random = np.random.default_rng(3)
    versions = sorted({(int(i), int(t)) for i, t in zip(random.integers(100, 125, 80), random.integers(990, 1030, 80))})
    price = {key: number for number, key in enumerate(versions, 1)}
    table = {"id": [i for i, _ in versions], "since": [t for _, t in versions], "cost": list(price.values())}
    pq.write_table(pa.table(table), tmp_path / "prices.parquet")
    join = {
        "source": {"files": "prices.parquet"},
        "key": {"column": "id"},
        "on": {"column": "item"},
        "valid_from": {"column": "since"},
        "values": {"price_then": "cost"},
    }
    known = {"price_then": {"column": "price_then", "table": "p", "width": 4}}
    past = {"price_past": {"column": "price_then", "table": "p", "width": 4}}
    prepare(write(joins={"prices": join}, context=known, event_side=past), tmp_path / "out")

    def then(item, time):
        earlier = [since for i, since in versions if i == item and since < time]
        return price[item, max(earlier)] if earlier else None

    found = samples(tmp_path / "out")
    items, costs = raws(tmp_path / "out", "item"), raws(tmp_path / "out", "price_then")
    wanted = [then(items[item], time) for item, time in zip(found["item"], found["timestamp"])]
    assert costs[found["price_then"]].tolist() == wanted
    assert any(since == time for _, since in versions for time in log["time"])
    with SeqVault.open(tmp_path / "out/vault") as vault:
        history = vault.read(np.arange(1, 13))
    wanted = [then(items[item], time) for item, time in zip(history["item"].astype(int), history["timestamp"])]
    assert costs[history["price_past"].astype(int)].tolist() == wanted


def test_features_of_users_by_a_join(write, tmp_path):
    table = {"who": np.arange(1, 11) * 10, "city": [f"city {n % 3}" for n in range(10)]}
    pq.write_table(pa.table(table), tmp_path / "users.parquet")
    join = {"source": {"files": "users.parquet"}, "key": {"column": "who"}, "on": {"column": "user"}}
    context = {"city": {"column": "city", "width": 4}}
    prepare(write(joins={"users": join | {"values": {"city": "upper(city)"}}}, context=context), tmp_path / "out")
    found = samples(tmp_path / "out")
    users, cities = raws(tmp_path / "out", "user"), raws(tmp_path / "out", "city")
    wanted = {10 * (n + 1): f"CITY {n % 3}" for n in range(10)}
    assert cities[found["city"]].tolist() == [wanted.get(user) for user in users[found["user"]]]


@pytest.mark.parametrize(("keep", "wanted"), [("first", 1), ("last", 3)])
def test_repeated_keys(write, tmp_path, keep, wanted):
    table = {"id": np.r_[np.arange(100, 125), [100, 100]], "shelf": np.r_[np.full(25, 1), [2, 3]]}
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    item_table = {"source": {"files": "items.parquet"}, "key": {"column": "id"}}
    side = {"shelf": {"column": "shelf", "width": 4}}
    with pytest.raises(ValueError, match="100 stands 3 times in the item table"):
        prepare(write(item_table=item_table, item_side=side), tmp_path / "out")
    prepare(write(item_table=item_table | {"keep": keep}, item_side=side), tmp_path / "out")
    shelves = raws(tmp_path / "out", "shelf")
    rows = {row["raw"]: row["shelf"] for row in pq.read_table(tmp_path / "out/items.parquet").to_pylist()}
    assert (shelves[rows[100]], shelves[rows[101]]) == (wanted, 1)
