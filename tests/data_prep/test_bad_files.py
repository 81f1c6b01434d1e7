"""Files that are not what the recipe says: one sentence with file, line and column, exit code 2, nothing changed."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.cli import main
from data_prep.file_gaps import missing_between

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


def test_link_to_a_missing_file(refuse, write, tmp_path):
    (tmp_path / "log-2.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    said = refuse(write(log={"files": "log*.parquet"}))
    assert "log-2.parquet is a link to a file that is missing; fetch or write it again" in said


def test_gap_in_a_series_of_files(write, tmp_path, log, capfd):
    """It is told and no mistake."""
    for part, day in enumerate(("0227", "0228", "0302", "0303")):
        rows = {name: values[part::4] for name, values in log.items()}
        pq.write_table(pa.table(rows), tmp_path / f"day-2023{day}.parquet")
    recipe = write(log={"files": "day-*.parquet"})
    assert main(["run", str(recipe), "--out", str(tmp_path / "out")]) == 0
    said = capfd.readouterr().err
    assert "4 files are named day-20230227.parquet to day-20230303.parquet, but day-20230301.parquet is not" in said


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["a_000.csv", "a_001.csv", "a_003.csv"], ["a_002.csv"]),
        (["9.csv", "10.csv", "12.csv"], ["11.csv"]),
        (["2024-02-28.x1", "2024-03-01.x1", "2024-03-02.x1"], ["2024-02-29.x1"]),
        (["a0", "a2", "a4"], []),
        (["a0", "a3"], []),
        (["99999998", "99999999", "12345678"], []),
        (["a1b1", "a2b2", "a4b4"], []),
        (["log.csv", "log2.csv", "log3.csv"], []),
    ],
)
def test_names_that_a_series_lacks(names, missing):
    assert missing_between(names) == missing


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
    assert "column item is beyond int64, so give it the type string, first at log row 4, " in said
    assert "log.csv line 6 (" in said
    assert "cell='9223372036854775808'" in said


def test_place_in_one_of_several_logs(refuse, write, tmp_path, text, log):
    """The second log's own file and line are told, whatever stands before it."""
    (tmp_path / "b.csv").write_text(text(time=np.where(np.arange(360) == 17, "noon", log["time"])))
    logs = [{"name": "a", "files": "log.parquet"}, {"name": "b", "files": "b.csv", "types": TYPES}]
    said = refuse(write(log=logs, max_rejected=0.0))
    assert "column time is not a whole number, first at log row 17 of 'b', " in said
    assert "b.csv line 19 (user=" in said


def test_milliseconds_taken_for_seconds(refuse, write, log):
    said = refuse(write({"time": log["time"] + 1_700_000_000_000}))
    assert "timestamp is after the year 9999, so its unit is not 's', first at log row 0" in said


def test_clock_that_jumps(write, tmp_path, log, capfd):
    """Rows far from all others in time are told with the keys that reject them; these then do."""
    time = log["time"] * 1000 + 1_700_000_000
    time[[3, 8]] = 7, 4_000_000_000
    recipe = write({"time": time})
    assert main(["run", str(recipe), "--out", str(tmp_path / "out")]) == 0
    rest = np.delete(time, [3, 8])
    said = capfd.readouterr().err
    assert "2 rows lie far from all others in time, from 1970-01-01 to 2096-10-02 (the rest: 2023-11-" in said
    assert f"set `earliest: {rest.min()}` and `latest: {rest.max()}` of `timestamp`" in said
    assert "2 rows lie far from all others in time" in (tmp_path / "out/report.html").read_text()
    clock = {"column": "time", "earliest": int(rest.min()), "latest": int(rest.max())}
    recipe = write({"time": time}, timestamp=clock)
    assert main(["run", str(recipe), "--out", str(tmp_path / "out")]) == 0
    assert "far from all others" not in capfd.readouterr().err
    assert len(pq.read_table(tmp_path / "out/rejected")) == 2


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
