"""``laser-prep inspect`` on a prepared data set: what a person reads there is what the raw files say."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import data_prep
from data_prep import inspection
from data_prep.cli import main

BUNDLED = Path(data_prep.__file__).parent / "bundled" / "movielens_small"
MARK = ">"


@pytest.fixture
def show(movielens, capsys):
    """Runs the verb; returns its lines."""

    def run(*arguments: str) -> list[str]:
        assert main(["inspect", str(movielens), *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture(scope="module")
def ratings() -> dict[int, list[dict]]:
    """Raw ratings of each user in time order."""
    found = defaultdict(list)
    for place, row in enumerate(pq.read_table(BUNDLED / "ratings.parquet").to_pylist()):
        found[row["userId"]].append(row | {"place": place})
    return {user: sorted(rows, key=lambda row: (row["timestamp"], row["place"])) for user, rows in found.items()}


def table(lines: list[str], title: str) -> list[list[str]]:
    """Cells of the table below a title, by two spaces apart; headings of segments as one cell."""
    start = next(place for place, line in enumerate(lines) if line.startswith(title))
    rows = []
    for line in lines[start + 1 :]:
        if not line:
            break
        rows.append([cell.strip() for cell in line[2:].split("  ") if cell.strip()])
    return rows


def test_history_of_a_sample_is_what_was_rated_before(show, ratings):
    mine = ratings[17]
    lines = show("--user", "17", "--sample", "90", "--width", "8", "--last", "0")
    assert lines[0] == "movielens_small: user 17 (code 17)"
    assert lines[1].startswith("105 samples (85 train, 10 val, 10 test), ")
    chosen = mine[89]
    before = [row for row in mine if row["timestamp"] < chosen["timestamp"]]
    rows = table(lines, "history before 2011-11-30 04:55:45: 89 events in 12 segments of 8")
    events = [row for row in rows[1:] if not row[0].startswith("--")]
    assert [int(row[1]) for row in events] == [row["movieId"] for row in before]
    assert [float(row[-1]) for row in events] == [row["rating"] for row in before]
    headings = [place for place, row in enumerate(rows[1:]) if row[0].startswith("--")]
    sizes = [b - a - 1 for a, b in zip(headings, [*headings[1:], len(rows) - 1])]
    assert sizes == [1] + [8] * 11, "only the oldest segment is short"
    genres = {row["movieId"]: row["genres"] for row in pq.read_table(BUNDLED / "movies.parquet").to_pylist()}
    known = next(row for row in events if int(row[1]) in genres)
    assert sorted(known[2].split(" | ")) == sorted(genres[int(known[1])].split("|"))
    marked = [line for line in lines if line.startswith(MARK)]
    assert len(marked) == 1
    assert marked[0].split()[1:3] == ["90", "val"]
    assert str(chosen["movieId"]) in marked[0].split()


def test_all_samples_and_labels(show, ratings):
    rows = table(show("--user", "17"), "samples 86 to 105 of 105")
    assert rows[0][:6] == ["no.", "split", "row", "time", "movie", "label"]
    found = [(int(row[4]), int(row[5])) for row in rows[1:]]
    assert found == [(row["movieId"], int(row["rating"] >= 4)) for row in ratings[17][-20:]]
    assert [row[1] for row in rows[1:]] == ["val"] * 10 + ["test"] * 10


def test_newest_events_only_and_codes(show, movielens):
    lines = show("--user", "17", "--last", "3", "--width", "8")
    assert "  ... 102 older events; --last 0 shows all" in lines
    ids = pq.read_table(movielens / "ids/user.parquet").to_pylist()
    code = next(row["code"] for row in ids if row["raw"] == 17)
    assert show("--user", str(code), "--coded", "true", "--last", "3", "--width", "8") == lines


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--user", "9999"], "no user '9999' among the 610 of "),
        (["--user", "9999", "--coded=true"], "no user with code '9999' in "),
        (["--user", "17", "--sample", "106"], "--sample is 106; user 17 has 105 samples, numbered from 1"),
        (["--user", "17", "--width", "0"], "--width is 0 and --last 64; expected a width of at least 1"),
    ],
)
def test_mistakes_are_one_sentence(movielens, capsys, arguments, sentence):
    assert main(["inspect", str(movielens), *arguments]) == 2
    found = capsys.readouterr().err
    assert sentence in found
    assert found.count("\n") == 1


def test_not_a_data_set(tmp_path, capsys):
    assert main(["inspect", str(tmp_path), "--user", "1"]) == 2
    assert "no schema at" in capsys.readouterr().err


def test_filters_hold_none_of_numpys_memory(movielens, monkeypatch) -> None:
    """Arrow's threads let go of a filter at any later time; with NumPy's memory in it, that aborts an ending Python."""
    held = []
    read_table = pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda *args, **options: held.append(options) or read_table(*args, **options))
    values = np.array([1, 2])
    references = sys.getrefcount(values)
    inspection._read(movielens / "ids/movie.parquet", "code", values, ["raw", "code"])
    assert held[0]["filters"] is not None
    assert sys.getrefcount(values) == references
