"""MovieLens in each published layout."""

from __future__ import annotations

import pytest

LAYOUTS = {
    "movielens_csv": {
        "ratings.csv": "userId,movieId,rating,timestamp\n",
        "movies.csv": 'movieId,title,genres\n3,"Été, L\' (1993)",Comedy|Drama\n5,Nameless,(no genres listed)\n',
    },
    "movielens_1m": {"ratings.dat": "", "movies.dat": "3::Été, L' (1993)::Comedy|Drama\n5::Say \"Nameless::Drama\n"},
    "movielens_10m": {"ratings.dat": "", "movies.dat": "3::Été, L' (1993)::Comedy|Drama\n5::Say \"Nameless::Drama\n"},
    "movielens_100k": {
        "u.data": "",
        "u.item": "3|Été, L' (1993)|01-Jan-1993||http://x|0|0|0|0|0|1|0|0|1" + "|0" * 10 + "\n"
        "5|Nameless||||1" + "|0" * 18 + "\n",
    },
}
DELIMITERS = {"movielens_csv": ",", "movielens_1m": "::", "movielens_10m": "::", "movielens_100k": "\t"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, ready):
    """The files as GroupLens writes them: delimiters, headers, encodings, quotes, ends of lines."""
    ratings, movies = LAYOUTS[name]
    encoding = "utf-8" if name in ("movielens_csv", "movielens_10m") else "latin-1"
    rows = [(user, (3, 5, 7)[turn % 3], turn % 5 + 1, 880_000_000 + turn) for user in (1, 2) for turn in range(20)]
    lines = "".join(DELIMITERS[name].join(map(str, row)) + "\n" for row in rows)
    ends = "\r\n" if name == "movielens_csv" else "\n"
    found = ready(
        name,
        {
            ratings: (LAYOUTS[name][ratings] + lines).replace("\n", ends),
            movies: LAYOUTS[name][movies].replace("\n", ends).encode(encoding),
        },
    )
    assert (found.report["rows"]["accepted"], found.report["users"], found.report["items"]) == (40, 2, 3)
    assert [found.report["samples"][split]["samples"] for split in ("train", "val", "test")] == [32, 4, 4]
    items = found.items()
    assert set(items[3]["genres"]) == {"Comedy", "Drama"}
    assert [items[movie]["decade"] for movie in (3, 5, 7)] == [[1990], [], []]
    assert items[7]["genres"] == []
