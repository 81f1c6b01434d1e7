"""Taobao UserBehavior and Globo.com: logs of clicks, whose negatives are drawn, in their published layouts."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import yaml

from data_prep.pipeline import prepare

from .conftest import RECIPES, Prepared, csv_text

NOVEMBER_25, DECEMBER_2, DECEMBER_3 = 1511539200, 1512144000, 1512230400
GLOBO_VALIDATION, GLOBO_TEST, HOUR = 1507950000000, 1508036400000, 3_600_000


def test_user_behavior(ready):
    """Views are samples, all four kinds of behaviour are history; every view gets four drawn items."""
    rows = []
    for user in (1, 2, 3):
        rows += [
            (user, 100 + i % 15, 7 + i % 2, ("pv", "pv", "cart", "fav", "buy")[i % 5], NOVEMBER_25 + 60 * i + user)
            for i in range(20)
        ]
        rows += [(user, 100 + user, 7, "pv", DECEMBER_2 + user), (user, 104, 7, "pv", DECEMBER_3 + user)]
    rows += [(1, 100, 7, "pv", 1199116800), (2, 101, 7, "pv", 2134949234)]
    found = ready("taobao_userbehavior", {"UserBehavior.csv": csv_text(None, rows)})
    assert found.report["events"] == 66, "rows of other years are no history"
    assert "published 100,150,807" in found.warnings
    views = {"train": 24, "val": 3, "test": 3}
    for split, count in views.items():
        samples = found.samples(split)
        assert [sum(row["label"] == label for row in samples) for label in (1, 0)] == [count, 4 * count]
    drawn = [row for row in found.samples("train") if not row["label"]]
    viewed = {(row["user"], row["timestamp"], row["item"]) for row in found.samples("train") if row["label"]}
    assert not viewed & {(row["user"], row["timestamp"], row["item"]) for row in drawn}
    assert all(row["log_q"] < 0 and math.isfinite(row["log_q"]) for row in drawn)
    assert {event["behaviour"] for event in found.history(1)} == {"pv", "cart", "fav", "buy"}


def test_globo(ready):
    """Negatives are articles clicked in the hour before, never the click itself."""
    rows = []
    for turn in range(60):
        for user in (1, 2, 3):
            time = GLOBO_VALIDATION - 60 * 600_000 + turn * 600_000 + user
            rows.append((user, 15068, 1506825541000, 2, 100 + (turn * 7 + user * 3) % 40, time, 4, 1, 12, 1, 25, user))
    for start in (GLOBO_VALIDATION, GLOBO_TEST):
        rows += [(u, 15069, start, 2, 100 + u, start + u * 1000, 4, 1, 12, 1, 25, 1) for u in (1, 2, 3)]
    rows.append((1, 15070, GLOBO_TEST + 50 * HOUR, 2, 100, GLOBO_TEST + 50 * HOUR, 4, 1, 12, 1, 25, 1))
    header = (
        "user_id,session_id,session_start,session_size,click_article_id,click_timestamp,click_environment,"
        "click_deviceGroup,click_os,click_country,click_region,click_referrer_type"
    )
    articles = [(a, a % 5, 1500000000000, 0, 200) for a in range(100, 140)]
    found = ready(
        "globo",
        {
            "clicks/clicks_hour_000.csv": csv_text(header, rows[:100]),
            "clicks/clicks_hour_001.csv": csv_text(header, rows[100:]),
            "articles_metadata.csv": csv_text(
                "article_id,category_id,created_at_ts,publisher_id,words_count", articles
            ),
        },
    )
    assert found.report["events"] == 187, "clicks after the test period are still history"
    clicks = [(row[4], row[5]) for row in rows]
    samples = [row for split in ("train", "val", "test") for row in found.samples(split)]
    for row in samples:
        if not row["label"]:
            time = row["timestamp"]
            assert row["article"] in {article for article, at in clicks if time - HOUR <= at < time}
    assert sum(row["label"] for row in samples) == 186
    assert sum(not row["label"] for row in samples) > 600, "only the first click of all has no hour before it"


@pytest.mark.skipif(
    "LASER_GLOBO" not in os.environ, reason="LASER_GLOBO does not give the folder of the clicks in Parquet"
)
def test_globo_known_counts(tmp_path, capsys):
    """The readers with 50 clicks or more, as one Parquet file without the articles' metadata."""
    recipe = yaml.safe_load((RECIPES / "globo.yaml").read_text())
    recipe["log"]["files"] = "clicks_users_ge50.parquet"
    del recipe["item_table"], recipe["item_side"]
    recipe["expected"] = {"50 clicks or more": {"rows": 533_633, "users": 6_627, "items": 19_286}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    report = prepare(tmp_path / "recipe.yaml", tmp_path / "out", Path(os.environ["LASER_GLOBO"]))
    assert report["expected"] == {"edition": "50 clicks or more", "differences": []}
    assert report["events"] == 533_633
    found = Prepared(tmp_path / "out", report, capsys.readouterr().err)
    shares = [report["samples"][split]["label_share"] for split in ("train", "val", "test")]
    assert shares == pytest.approx([0.2] * 3, abs=0.01)
    test = found.samples("test")
    assert {row["label"] for row in test} == {0, 1}
    assert min(row["timestamp"] for row in test) >= GLOBO_TEST
    lengths = report["samples"]["test"]["history_length"]
    assert lengths["p50"] > 20
