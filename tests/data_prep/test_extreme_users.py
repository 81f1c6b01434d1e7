"""A user with a million events among others, in bounded memory and without work that grows with the square."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.leakage import check_prepared
from data_prep.pipeline import prepare
from laser.seqvault import SeqVault

EVENTS = 1_000_000
ROWS = EVENTS + 1000
MOST_BYTES = 2_000 << 20
"""Of the whole process: --memory allows 1 GiB; libraries that are mapped into memory count beside it here, and so does
the compiler where its results are not cached yet. Work that grows with the square would need tens of GiB."""
MEASURED = """
import json, re, sys
from pathlib import Path
from data_prep.pipeline import prepare
report = prepare(Path(sys.argv[1]), Path(sys.argv[2]), memory="1GiB", threads=2)
peak = re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())  # ru_maxrss counts the parent's, too
print(json.dumps({"report": report, "peak": 1024 * int(peak[1])}))
"""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipe of a log in which a robot has a million events, a tenth of them at one moment, and 50 people 20 each."""
    folder = tmp_path_factory.mktemp("busy")
    random = np.random.default_rng(0)
    time = np.sort(random.integers(0, 10**6, ROWS))
    time[ROWS // 2 : ROWS // 2 + EVENTS // 10] = time[ROWS // 2]
    user = np.zeros(ROWS, np.int64)
    user[random.permutation(ROWS)[:1000]] = 1 + np.arange(1000) % 50
    item, click = random.integers(0, 5000, ROWS), random.integers(0, 2, ROWS, np.int8)
    pq.write_table(pa.table({"user": user, "item": item, "time": time, "click": click}), folder / "log.parquet")
    recipe = {
        "name": "busy",
        "raw": str(folder),
        "log": {"files": "log.parquet"},
        "user": {"column": "user"},
        "item": {"column": "item", "width": 4},
        "timestamp": {"column": "time"},
        "label": {"column": "click"},
        "event_side": {"click": {"column": "click", "width": 4}},
        "split": {"by_time": {"validation": 800_000, "test": 900_000}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@pytest.mark.usefixtures("small")  # compiles the loops before, as the compiler's memory is not that of a run
def test_a_million_events_of_one_user(busy: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURED, str(busy), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] < MOST_BYTES
    report = found["report"]
    assert report["leakage_check"]["samples_checked"] == ROWS
    assert report["leakage_check"]["histories_read_as_in_training"] > 10_000
    assert sum(split["with_own_event"] for split in report["samples"].values()) == report["events"] == ROWS
    log = pq.read_table(busy.with_name("log.parquet"))
    times = log["time"].to_numpy()[log["user"].to_numpy() == 0]
    with SeqVault.open(tmp_path / "out/vault") as vault:
        before = int(times[EVENTS // 2 + EVENTS // 20])  # within the crowded moment
        newest = vault.read([1], before=before, last_n=1000)["timestamp"]
    np.testing.assert_array_equal(newest, times[times < before][-1000:])
    # Samples gathered in many passes give the same findings as in one.
    told = check_prepared(tmp_path / "out", report, most_bytes=1 << 12)
    assert (told.problems, told.samples) == ([], ROWS)
    for split, counts in told.lengths.items():
        mean = (counts * np.arange(len(counts))).sum() / counts.sum()
        assert report["samples"][split]["history_length"]["mean"] == pytest.approx(mean)


def test_user_ids_beyond_63_bits(write, log, tmp_path, laser_prep) -> None:
    """Unsigned ids of Parquet keep their value through dictionaries, hashes and inspection; in text, as strings."""
    huge = log["user"].astype(np.uint64) + np.uint64(2**63 + 2**62)
    context = {"person": {"column": "user", "hash": 1000, "width": 4}}
    prepare(write({"user": huge}, context=context), tmp_path / "out")
    assert pq.read_table(tmp_path / "out/ids/user.parquet")["raw"].to_pylist() == np.unique(huge).tolist()
    done = laser_prep("inspect", tmp_path / "out", "--user", str(huge.max()))
    assert done.returncode == 0, done.stderr
    assert str(huge.max()) in done.stdout
    columns = {"user": huge, "item": log["item"], "time": log["time"], "stars": log["stars"]}
    rows = zip(*columns.values(), strict=True)
    (tmp_path / "log.csv").write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]))
    types = {"user": "string", "item": "int64", "time": "int64", "stars": "float64"}
    prepare(write(log={"files": "log.csv", "types": types}, context=context), tmp_path / "text")
    for split in ("train", "val", "test"):
        one, other = (pq.read_table(tmp_path / name / "samples" / split) for name in ("out", "text"))
        assert one["person"].to_pylist() == other["person"].to_pylist()
