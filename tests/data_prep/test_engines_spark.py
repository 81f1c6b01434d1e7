"""Spark makes the data set that DuckDB makes: a standalone master and two workers, real processes on loopback."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.pipeline import prepare
from laser.seqvault import SeqVault

pyspark = pytest.importorskip("pyspark", reason="PySpark is not installed: the extra `spark`")
pytestmark = [
    pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java"),
    pytest.mark.timeout(900),  # five processes on a loaded machine
]
ROOT = Path(__file__).parents[2]
QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # the queries are too small to pay for compiling them
SETTINGS = f"""spark.driver.host 127.0.0.1
spark.driver.bindAddress 127.0.0.1
spark.driver.extraJavaOptions {QUICK}
spark.executor.extraJavaOptions {QUICK}
spark.sql.codegen.wholeStage false
spark.sql.shuffle.partitions 2
"""


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster of two workers with a core each."""
    folder = tmp_path_factory.mktemp("spark")
    (folder / "spark-defaults.conf").write_text(SETTINGS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"spark://127.0.0.1:{port}"
    place = {"SPARK_CONF_DIR": str(folder), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m"}
    patch = pytest.MonkeyPatch()
    for name, value in place.items():
        patch.setenv(name, value)
    command = [str(Path(pyspark.__file__).parent / "bin/spark-class"), "org.apache.spark.deploy"]
    log = (folder / "log").open("w")
    starts = [["master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]]
    own = ["--host", "127.0.0.1", "--cores", "1", "--memory", "1g", "--webui-port", "0", "--work-dir", str(folder)]
    starts += [["worker.Worker", address, *own]] * 2
    cluster = [
        subprocess.Popen([command[0], f"{command[1]}.{kind}", *rest], stdout=log, stderr=log) for kind, *rest in starts
    ]
    try:
        deadline = time.monotonic() + 180  # a loaded machine takes its time
        while (folder / "log").read_text().count("Successfully registered with master") < 2:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        for process in cluster:
            process.kill()
            process.wait()
        patch.undo()


def assert_same(first: Path, second: Path) -> None:
    """Every file the same to the byte, and every history, whatever the store's own files look like."""
    names = [
        sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.parts[-2] != "vault")
        for folder in (first, second)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        if name.stem != "report" and name.parts[0] != "vault":  # both tell the bytes of the store
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
    with SeqVault.open(first / "vault") as one, SeqVault.open(second / "vault") as other:
        users = one.users()
        np.testing.assert_array_equal(users, other.users())
        histories, others = one.read(users), other.read(users)
        np.testing.assert_array_equal(histories.offsets, others.offsets)
        for field in histories.fields:
            np.testing.assert_array_equal(histories[field], others[field])
        assert other.check() == []


def test_movielens(master: str, movielens: Path, tmp_path: Path) -> None:
    report = prepare(ROOT / "conf/prep/movielens_small.yaml", tmp_path / "out", engine="spark", spark_master=master)
    assert report["events"] == 100_836
    assert_same(movielens, tmp_path / "out")


def write_rich(folder: Path) -> Path:
    """Two compressed text files with ties and faults, and a recipe that uses most of what there is."""
    random = np.random.default_rng(3)
    rows = 3000
    columns: dict[str, Any] = {
        "who": random.integers(1, 60, rows),
        "what": [f"ding {number}" for number in random.integers(0, 90, rows)],
        "when": random.integers(0, 500, rows),
        "stars": random.integers(1, 6, rows),
        "price": random.normal(size=rows).round(3),
        "shop": [["", "Nord|Süd", "Öst", "a\\b"][i] for i in random.integers(0, 4, rows)],
    }
    lines = [",".join(str(cell) for cell in row) for row in zip(*columns.values())]
    lines[2000] = "oops" + lines[2000]
    for part in range(2):
        text = "\n".join([",".join(columns), *lines[part * 1500 : (part + 1) * 1500]]) + "\n"
        (folder / f"log {part}+.csv.gz").write_bytes(gzip.compress(text.encode()))
    things = {"key": [f"ding {n}" for n in range(90)], "tags": [f"f{n % 7}| v{n % 5} " for n in range(90)]}
    things |= {"mass": np.where(np.arange(90) % 9, np.arange(90) / 7, np.nan)}
    pq.write_table(pa.table(things | {"year": pa.array(range(90), pa.uint16())}), folder / "things.parquet")
    types = {"who": "int64", "what": "string", "when": "int64", "stars": "int64", "price": "float64", "shop": "string"}
    recipe = {
        "name": "rich",
        "raw": str(folder),
        "log": {"files": "log*.csv.gz", "types": types},
        "user": {"column": "who", "width": 4},
        "item": {"column": "what", "width": 4},
        "timestamp": {"column": "when", "unit": "step"},
        "label": {"expression": "stars >= 4"},
        "item_table": {"source": {"files": "things.parquet"}, "key": {"column": "key"}},
        "item_side": {
            "tags": {"column": "tags", "split": "|", "length": 2, "width": 4},
            "mass": {"column": "mass", "buckets": 5, "width": 4},
            "year": {"column": "year", "width": 4},
            "shops": {"column": "shop", "from_log": True, "length": 2, "table": "shop", "width": 4},
        },
        "event_side": {"stars": {"column": "stars", "width": 4}},
        "context": {
            "target_shop": {"column": "shop", "table": "shop", "width": 4},
            "price": {"column": "price", "buckets": 7, "width": 4},
            "first": {"expression": "regexp_extract(what, '(\\d)', 1)", "missing": ["3"], "width": 4},
        },
        "target": {"where": 'what IS DISTINCT FROM lag(what) OVER (PARTITION BY who ORDER BY "when", log_row)'},
        "history": {"where": "price > -1.5"},
        "split": {"by_time": {"validation": 350, "test": 420, "end": 490}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_rich_recipe(master: str, tmp_path: Path) -> None:
    recipe = write_rich(tmp_path)
    report = prepare(recipe, tmp_path / "duckdb")
    assert sum(report["rows"]["rejected"].values()) == 1
    prepare(recipe, tmp_path / "spark", engine="spark", spark_master=master)
    assert_same(tmp_path / "duckdb", tmp_path / "spark")


def write_wide(folder: Path) -> Path:
    """Pages with lists and a search log as one history, prices that change, and a recipe with the rules over rows."""
    random = np.random.default_rng(11)
    pages = [random.integers(0, 60, random.integers(0, 5)).tolist() for _ in range(500)]
    marks: list[Any] = [random.integers(0, 2, len(page)).tolist() for page in pages]
    pages[7] = marks[7] = None  # type: ignore[call-overload]
    columns = {"who": random.integers(1, 40, 500), "when": random.integers(0, 300, 500), "visit": ["a", "b"] * 250}
    columns |= {"shown": pages, "clicked": marks}
    pq.write_table(pa.table(columns).slice(0, 200), folder / "pages-0.parquet")
    pq.write_table(pa.table(columns).slice(200), folder / "pages-1.parquet")
    rows = zip(*(random.integers(0, top, 700).tolist() for top in (40, 60, 300_000, 12)))
    text = "\n".join(["uid\tvid\tms\twords", *(f"{u}\t{v}\t{ms}\tÄpfel {w}" for u, v, ms, w in rows)])
    (folder / "search.tsv.gz").write_bytes(gzip.compress(text.encode()))
    prices = {"id": random.integers(0, 60, 150), "since": random.integers(0, 300, 150), "cost": np.arange(150) % 9}
    pq.write_table(pa.table(prices), folder / "prices.parquet")
    searched = {"who": "uid", "shown": "vid", "when": "ms // 1000", "clicked": "1", "visit": "'s' || uid % 3"}
    rare = {"min_count": 8, "oov_buckets": 3}
    recipe = {
        "name": "wide",
        "raw": str(folder),
        "log": [
            {"name": "pages", "files": "pages-*.parquet", "explode": ["shown", "clicked"]},
            {
                "name": "search",
                "files": "search.tsv.gz",
                "types": {"uid": "int64", "vid": "int64", "ms": "int64", "words": "string"},
                "values": searched,
            },
        ],
        "joins": {
            "prices": {
                "source": {"files": "prices.parquet"},
                "key": {"column": "id"},
                "on": {"column": "shown"},
                "valid_from": {"column": "since"},
                "keep": "last",
                "values": {"cost": "cost"},
            }
        },
        "user": {"column": "who", "width": 4},
        "item": {"column": "shown", "width": 4, **rare},
        "timestamp": {"column": "when", "earliest": 5},
        "label": {"column": "clicked"},
        "item_side": {"words": {"column": "words", "from_log": True, "length": 2, "width": 4}},
        "event_side": {"cost": {"column": "cost", "table": "cost", "width": 4, "vocabulary": "train"}},
        "context": {
            "scenario": {"column": "log_name", "width": 4},
            "slot": {"column": "position", "width": 4},
            "cell": {"column": "who", "hash": 7, "width": 4},
            "query": {"column": "words", "hash": 50, "width": 4},
            "price": {"column": "cost", "table": "cost", "width": 4, "vocabulary": "train"},
        },
        "session": {"column": "visit"},
        "request": {"expression": "coalesce(list_row, -1)"},
        "deduplicate": {"same": ["user", "item"], "within": 3, "keep": "last"},
        "users": {"min_events": 35},
        "negatives": {"per_positive": 2, "by": "popularity", "seed": 4},
        "downsample": {"keep": 0.6},
        "split": {"by_user_fold": {"folds": 5, "validation": [1], "test": [2]}},
        "max_rejected": 0.05,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True))
    return path


def told(report: dict[str, Any]) -> dict[str, Any]:
    """A report without the store's bytes."""
    return {name: value for name, value in report.items() if name != "bytes"}


def test_rules_over_rows(master: str, tmp_path: Path) -> None:
    """Several logs, exploded lists, values as of a time, hashed and rare ids, rules over rows, drawn negatives."""
    recipe = write_wide(tmp_path)
    report = prepare(recipe, tmp_path / "duckdb")
    rows = report["rows"]
    assert min(rows["drawn"], rows["thinned"], *rows["removed"].values(), *rows["rejected"].values()) > 0
    other = prepare(recipe, tmp_path / "spark", engine="spark", spark_master=master)
    assert told(other) == told(report)
    assert_same(tmp_path / "duckdb", tmp_path / "spark")


def test_killed_on_spark(master: str, small: Path, write: Any, tmp_path: Path) -> None:
    """SIGKILL of the driver while Spark works: the old data set stays whole."""
    out = Path(shutil.copytree(small, tmp_path / "out"))
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    script = Path(sys.executable).with_name("laser-prep")
    command = [script, "run", write(note="again"), "--out", out, "--engine", "spark", "--spark_master", master]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not list(tmp_path.glob(".out.preparing-*/work/tables/*/_SUCCESS")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
