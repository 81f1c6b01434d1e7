"""MovieLens: known counts, a plain reference, compressed and globbed text."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import data_prep
from data_prep.pipeline import prepare
from laser.schema import Schema
from laser.seqvault import SeqVault

BUNDLED = Path(data_prep.__file__).parent / "bundled" / "movielens_small"
RECIPES = Path(__file__).parents[2] / "conf/prep"


def read_samples(folder: Path, split: str) -> dict[str, np.ndarray]:
    table = pq.read_table(folder / "samples" / split)
    return {name: table[name].to_numpy() for name in table.column_names}


def test_known_counts(movielens):
    report = json.loads((movielens / "report.json").read_text())
    assert report["rows"] == {"read": 100_836, "accepted": 100_836, "rejected": {}}
    assert (report["users"], report["items_in_log"], report["events"]) == (610, 9_724, 100_836)
    label = np.concatenate([read_samples(movielens, split)["label"] for split in ("train", "val", "test")])
    assert len(label) == 100_836
    assert label.mean() == pytest.approx(0.482, abs=5e-4)
    assert report["leakage_check"]["problems"] == []
    ratings, movies = pq.read_table(BUNDLED / "ratings.parquet"), pq.read_table(BUNDLED / "movies.parquet")
    known = np.isin(ratings["movieId"].to_numpy(), movies["movieId"].to_numpy())
    assert len(np.unique(ratings["movieId"].to_numpy()[known])) == 7_072


def test_equals_plain_reference(movielens):
    """Codes, splits, order, labels and strictly earlier histories against a loop over the raw rows."""
    raw = pq.read_table(BUNDLED / "ratings.parquet").to_pylist()
    user_code = {user: code for code, user in enumerate(sorted({row["userId"] for row in raw}), 1)}
    items = pq.read_table(movielens / "items.parquet")
    item_code = dict(zip(items["raw"].to_pylist(), items["movie"].to_pylist()))
    rows = defaultdict(list)
    for place, row in enumerate(raw):
        rows[row["userId"]].append((row["timestamp"], place, row))
    wanted = {"train": [], "val": [], "test": []}
    histories = {}
    for user, mine in rows.items():
        mine.sort(key=lambda entry: entry[:2])
        held = len(mine) // 10
        for rank, (time, place, row) in enumerate(mine):
            split = "test" if rank >= len(mine) - held else "val" if rank >= len(mine) - 2 * held else "train"
            wanted[split].append((time, place, user_code[user], item_code[row["movieId"]], int(row["rating"] >= 4)))
        histories[user_code[user]] = [(t, item_code[r["movieId"]], round(r["rating"] * 2)) for t, _, r in mine]
    for split, expected in wanted.items():
        expected.sort()
        found = read_samples(movielens, split)
        assert found["row"].tolist() == list(range(len(expected)))
        columns = zip(*(found[name].tolist() for name in ("timestamp", "user", "movie", "label")))
        assert list(columns) == [(time, user, item, label) for time, _, user, item, label in expected]
    test = read_samples(movielens, "test")
    with SeqVault.open(movielens / "vault") as vault:
        read = vault.read(test["user"][:300].astype(np.int64), before=test["timestamp"][:300])
    for index in range(300):
        events = read.of(index)
        seen = list(zip(*(events[name].tolist() for name in ("timestamp", "movie", "rating"))))
        user, time = int(test["user"][index]), int(test["timestamp"][index])
        assert seen == [event for event in histories[user] if event[0] < time]


def test_items(movielens):
    """Genres by falling frequency, padded with 0; films without an entry are unknown."""
    schema = Schema.load(movielens / "schema.json")
    items = {row["raw"]: row for row in pq.read_table(movielens / "items.parquet").to_pylist()}
    names = {row["code"]: row["raw"] for row in pq.read_table(movielens / "ids/genres.parquet").to_pylist()}
    listed = [movie["genres"].split("|") for movie in pq.read_table(BUNDLED / "movies.parquet").to_pylist()]
    often = {name: sum(name in genres for genres in listed) for name in names.values()}
    toy_story = items[1]
    genres = [names[code] for code in toy_story["genres"] if code]
    assert sorted(genres) == ["Adventure", "Animation", "Children", "Comedy", "Fantasy"]
    assert [often[genre] for genre in genres] == sorted((often[genre] for genre in genres), reverse=True)
    assert toy_story["genres"][5] == 0
    decades = {row["code"]: row["raw"] for row in pq.read_table(movielens / "ids/decade.parquet").to_pylist()}
    assert decades[toy_story["decade"]] == 1990
    rated = set(pq.read_table(BUNDLED / "ratings.parquet")["movieId"].to_pylist())
    titled = set(pq.read_table(BUNDLED / "movies.parquet")["movieId"].to_pylist())
    unknown = items[min(rated - titled)]
    assert (unknown["genres"], unknown["decade"]) == ([0] * 6, 0)
    assert len(items) == schema.item.cardinality == len(rated | titled) + 1
    assert [row["movie"] for row in items.values()] == list(range(len(items)))


def test_compressed_and_globbed_text(tmp_path):
    """Two compressed parts are one log, in the order of their names."""
    raw = tmp_path / "raw"
    raw.mkdir()
    text = re.sub(r"^expected:.*\n(?: .*\n)*", "", (RECIPES / "movielens_csv.yaml").read_text(), flags=re.MULTILINE)
    recipe = text.replace("ratings.csv", '"ratings-*.csv.gz"')
    (tmp_path / "recipe.yaml").write_text(recipe)
    (raw / "movies.csv").write_text("movieId,title,genres\n100,Nameless,(no genres listed)\n")
    for part in (2, 1):
        lines = "".join(f"1,{part * 100 + turn},{turn % 5 + 1},1000\n" for turn in range(10))
        with gzip.open(raw / f"ratings-{part}.csv.gz", "wt") as file:
            file.write("userId,movieId,rating,timestamp\n" + lines)
    prepare(tmp_path / "recipe.yaml", tmp_path / "out", raw)
    movies = pq.read_table(tmp_path / "out/items.parquet")["raw"].to_numpy()
    assert movies[read_samples(tmp_path / "out", "train")["movie"]].tolist() == [*range(100, 110), *range(200, 206)]
    assert movies[read_samples(tmp_path / "out", "test")["movie"]].tolist() == [208, 209]
