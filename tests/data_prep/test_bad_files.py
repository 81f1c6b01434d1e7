"""Files that are not what the recipe says: one sentence with file, line and column, exit code 2, nothing changed."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.cli import main

TYPES = {"user": "int64", "item": "int64", "time": "int64", "stars": "float64"}


@pytest.fixture
def refuse(tmp_path, capfd):
    """Runs the command and returns its only line; nothing may be left behind."""

    def run(recipe):
        code = main(["run", str(recipe), "--out", str(tmp_path / "out")])
        lines = capfd.readouterr().err.strip().split("\n")
        assert (code, len(lines)) == (2, 1), lines
        assert not list(tmp_path.glob("*out*"))
        return lines[0]

    return run


@pytest.fixture
def text(log):
    """The log as text."""

    def build(separator=",", **columns):
        chosen = {name: columns.get(name, log[name]) for name in TYPES}
        lines = [separator.join(map(str, row)) for row in zip(*chosen.values(), strict=True)]
        return "\n".join([separator.join(TYPES), *lines]) + "\n"

    return build


def test_wrong_delimiter(refuse, write, tmp_path, text):
    (tmp_path / "log.csv").write_text(text(";"))
    said = refuse(write(log={"files": "log.csv", "types": TYPES}))
    assert "log.csv has only one column, 'user;item;time;stars'; it seems to be separated by a semicolon" in said
    assert 'set `delimiter: ";"` in the recipe' in said


def test_wrong_number_of_columns(refuse, write, tmp_path, text):
    (tmp_path / "log.csv").write_text(text("::"))
    said = refuse(write(log={"files": "log.csv", "types": TYPES, "columns": list(TYPES)}))
    assert "log.csv line 1 has 1 columns and `columns` names 4; it seems to be separated by a double colon" in said


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.jsonl"])
def test_empty_text(refuse, write, tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    assert f"{name} is empty; fetch or write it again" in refuse(write(log={"files": name, "types": TYPES}))


def test_mixed_encodings(refuse, write, tmp_path, text, log):
    """One file is Latin-1, from its line 8 on; another is UTF-16 as a spreadsheet saves it."""
    (tmp_path / "a.csv").write_text(text())
    names = np.where(np.arange(360) == 6, "Müller", "Mu")
    (tmp_path / "b.csv").write_bytes(text(user=names).encode("latin-1"))
    source = {"files": "*.csv", "types": TYPES | {"user": "string"}}
    assert "b.csv line 8 is not utf-8 (invalid" in refuse(write(log=source))
    (tmp_path / "b.csv").write_bytes(text().encode("utf-16"))
    assert "b.csv line 1 is not utf-8" in refuse(write(log=source))


def test_damaged_compression(refuse, write, tmp_path, text):
    whole = gzip.compress(text().encode())
    (tmp_path / "log.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert "log.csv.gz cannot be read to its end" in refuse(write(log={"files": "log.csv.gz", "types": TYPES}))
    (tmp_path / "log.csv.gz").write_text(text())
    assert "log.csv.gz cannot be read (Not a gzipped file" in refuse(write(log={"files": "log.csv.gz", "types": TYPES}))


def test_lines_that_are_no_json(refuse, write, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"user": 1}\n{"user": \n')
    said = refuse(write(log={"files": "log.jsonl", "types": TYPES}))
    assert "log.jsonl line 2 is not JSON" in said
    (tmp_path / "log.jsonl").write_text("[1, 2]\n")
    assert "line 1 is no JSON object but '[1, 2]'" in refuse(write(log={"files": "log.jsonl", "types": TYPES}))


def test_missing_file(refuse, write):
    said = refuse(write(log={"files": ["log.parquet", "day-*.parquet"]}))
    assert "no file 'day-*.parquet' in" in said
    assert "which holds log.parquet, recipe.yaml; check --raw" in said


def test_type_that_changes_between_files(refuse, write, tmp_path, log):
    for name, kind in (("a", pa.int64()), ("b", pa.string())):
        columns = {key: pa.array(log[key]) for key in TYPES} | {"item": pa.array(log["item"]).cast(kind)}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    said = refuse(write(log={"files": ["a.parquet", "b.parquet"]}))
    assert "column 'item' is int64 in" in said
    assert "a.parquet and string in" in said
    said = refuse(write(log=[{"name": n, "files": f"{n}.parquet"} for n in "ab"]))
    assert "column 'item' has different types in the logs (int64 in a, string in b)" in said


def test_columns_that_change_between_files(refuse, write, tmp_path, text):
    (tmp_path / "a.csv").write_text(text())
    (tmp_path / "b.csv").write_text(text().replace("user,item", "item,user", 1))
    said = refuse(write(log={"files": "*.csv", "types": TYPES}))
    assert "b.csv has columns item, user, time, stars and" in said


def test_ids_beyond_64_bits(refuse, write, tmp_path, text, log):
    """2^63 in a text does not fit int64: the cell is named, and nothing is rounded."""
    items = [str(2**63) if row == 4 else str(item) for row, item in enumerate(log["item"])]
    (tmp_path / "log.csv").write_text(text(item=items))
    said = refuse(write(log={"files": "log.csv", "types": TYPES}, max_rejected=0.0))
    assert "column item is not a whole number, first at log row 4, " in said
    assert "log.csv line 6 (" in said
    assert "cell='9223372036854775808'" in said


def test_log_without_a_column(refuse, write, tmp_path, log):
    pq.write_table(pa.table({name: log[name] for name in TYPES if name != "stars"}), tmp_path / "b.parquet")
    said = refuse(write({"stars": None}, log=[{"name": n, "files": f"{n}.parquet"} for n in ("log", "b")]))
    assert "no log has a column 'stars': log has item," in said


def test_join_mistakes(refuse, write, tmp_path):
    def joined(table, **join):
        pq.write_table(pa.table(table), tmp_path / "side.parquet")
        parts = {"source": {"files": "side.parquet"}, "key": {"column": "k"}, "on": {"column": "item"}}
        return write(joins={"side": parts | {"values": {"v": "v"}} | join}, context={"v": {"column": "v"}})

    assert "100 stands 2 times in the table 'side' of `joins`" in refuse(joined({"k": [100, 100], "v": [1, 2]}))
    said = refuse(joined({"k": ["a"], "v": [1]}))
    assert "found by a key of type string, but `on` has type int64 in the log" in said
    said = refuse(joined({"k": [100, None], "v": [1, 2]}))
    assert "side.parquet row group 0, row 1 of the table 'side' of `joins` is unfit: it has no key" in said
    said = refuse(joined({"k": [100], "v": [1], "t": [5]}, valid_from={"column": "t", "unit": "ms"}))
    assert "`joins.side.valid_from` has the unit 'ms' and `timestamp` 's'" in said


def test_bare_on_in_yaml(write, tmp_path):
    """YAML 1.1 reads the key ``on`` as true."""
    pq.write_table(pa.table({"k": np.arange(100, 125), "v": np.arange(25)}), tmp_path / "side.parquet")
    recipe = write(context={"v": {"column": "v"}})
    text = recipe.read_text() + (
        "joins:\n  side:\n    source: {files: side.parquet}\n    key: {column: k}\n    on: {column: item}\n"
        "    values: {v: v}\n"
    )
    recipe.write_text(text)
    assert main(["run", str(recipe), "--out", str(tmp_path / "out")]) == 0
