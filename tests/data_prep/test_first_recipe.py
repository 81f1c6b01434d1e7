"""``laser-prep init``: the recipe that it writes loads, gives its reasons, and runs on logs of well-known layouts."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.cli import main
from data_prep.pipeline import prepare
from data_prep.recipe_file import load_recipe

ROWS = 600
RANDOM = np.random.default_rng(0)
USER = np.arange(ROWS) % 12
ITEM = RANDOM.integers(100, 130, ROWS)
YES = RANDOM.integers(0, 2, ROWS)
STEP = np.arange(ROWS)

MOVIELENS = {"userId": USER, "movieId": ITEM, "rating": RANDOM.integers(1, 11, ROWS) / 2, "timestamp": 964980000 + STEP}
ASSISTMENTS = {"user": USER, "pos": STEP, "problem": ITEM, "skill": ITEM % 7, "correct": YES, "fold": USER % 5}
KUAIRAND = {
    **{"user_id": USER, "video_id": ITEM, "date": 20220408, "hourmin": 1200, "time_ms": 1649347200000 + STEP * 999},
    **{"is_click": YES, "is_like": YES, "play_time_ms": RANDOM.integers(0, 90000, ROWS), "tab": STEP % 5},
}
CLICKS = {
    "user_id": USER,
    "click_article_id": ITEM,
    "click_timestamp": [f"2017-10-{1 + n // 100:02d} 10:{n // 60:02d}:{n % 60:02d}" for n in STEP],
}


def write(columns, path, separator=","):
    table = pa.table({name: np.broadcast_to(values, ROWS) for name, values in columns.items()})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    else:
        lines = [separator.join(map(str, row.values())) for row in table.to_pylist()]
        path.write_text("\n".join([separator.join(columns), *lines]))
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.parquet", "log.jsonl", "semicolons.csv"])
@pytest.mark.parametrize(
    ("columns", "item", "unit", "label"),
    [
        (MOVIELENS, "movieId", "s", {"expression": '"rating" >= 4'}),
        (ASSISTMENTS, "problem", "step", {"column": "correct"}),
        (KUAIRAND, "video_id", "ms", {"column": "is_click"}),
        (CLICKS, "click_article_id", "s", {"expression": "1"}),
    ],
    ids=["movielens", "assistments", "kuairand", "clicks"],
)
def test_well_known_layouts(tmp_path, name, columns, item, unit, label):
    separator = {"log.tsv": "\t", "semicolons.csv": ";"}.get(name, ",")
    log = write(columns, tmp_path / name, separator)
    assert main(["init", str(log), "--out", str(tmp_path / "recipe.yaml")]) == 0
    text = (tmp_path / "recipe.yaml").read_text()
    recipe = yaml.safe_load(text)
    assert (recipe["item"]["column"], recipe["timestamp"]["unit"], recipe["label"]) == (item, unit, label)
    assert text.count("\n# ") >= 7
    load_recipe(tmp_path / "recipe.yaml")
    if name not in ("log.csv", "log.jsonl"):
        return
    report = prepare(tmp_path / "recipe.yaml", tmp_path / "out")
    drawn = report["rows"].pop("drawn", None)
    assert report["rows"] == {"read": ROWS, "accepted": ROWS, "rejected": {}}
    assert (columns is not CLICKS) if drawn is None else 3 * ROWS < drawn < 4 * ROWS, "the first clicks have none"
    assert report["events"] == ROWS


def test_a_column_whose_name_no_table_may_have(tmp_path):
    log = write(KUAIRAND | {"type": ITEM % 4}, tmp_path / "log.csv")
    main(["init", str(log), "--out", str(tmp_path / "recipe.yaml")])
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.item_side["type_value"].column == "type"


def test_kinds_of_side_info(tmp_path):
    log = write(KUAIRAND | {"maker": ITEM % 4}, tmp_path / "log.csv")
    main(["init", str(log), "--out", str(tmp_path / "recipe.yaml")])
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert set(recipe["event_side"]) == {"is_click", "is_like", "play_time_ms"}
    assert set(recipe["item_side"]) == {"maker"}
    assert "#   tab: {column: tab" in (tmp_path / "recipe.yaml").read_text()


def test_sessions_and_requests(tmp_path):
    """They become columns of the samples, and no features."""
    log = write(CLICKS | {"session_id": STEP // 7, "request": [f"r{n}" for n in STEP]}, tmp_path / "log.parquet")
    main(["init", str(log), "--out", str(tmp_path / "recipe.yaml")])
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert (recipe["session"], recipe["request"]) == ({"column": "session_id"}, {"column": "request"})
    assert "context" not in (tmp_path / "recipe.yaml").read_text()
    prepare(tmp_path / "recipe.yaml", tmp_path / "out")
    assert {"session", "request"} <= set(pq.read_schema(tmp_path / "out/samples/test/part-00000.parquet").names)


def test_mistakes(tmp_path, capfd):
    log = write({"a": USER, "b": ITEM}, tmp_path / "log.csv")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "mine.yaml").write_text("mine")
    good = write(MOVIELENS, tmp_path / "good.csv")
    for arguments, said in (
        ([log], "looks like the user (columns a, b)"),
        ([tmp_path / "empty.csv"], "empty.csv is empty"),
        ([tmp_path / "none.csv"], "no file 'none.csv' in"),
        ([good, "--out", tmp_path / "mine.yaml"], "exists and is left alone"),
    ):
        assert main(["init", *map(str, arguments)]) == 2
        line = capfd.readouterr().err.strip()
        assert said in line
        assert "\n" not in line
    assert (tmp_path / "mine.yaml").read_text() == "mine"
