"""ASSISTments-2017 by its protocol; needs the file, whose folder is given by LASER_ASSISTMENTS."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.pipeline import prepare
from laser.seqvault import SeqVault

RECIPE = Path(__file__).parents[2] / "conf/prep/assistments2017.yaml"


@pytest.mark.skipif("LASER_ASSISTMENTS" not in os.environ, reason="LASER_ASSISTMENTS does not give the data's folder")
def test_known_counts(tmp_path):
    raw = Path(os.environ["LASER_ASSISTMENTS"])
    report = prepare(RECIPE, tmp_path / "out", raw)
    assert (report["users"], report["items"], report["events"]) == (1_705, 3_162, 941_502)
    samples = {split: found["samples"] for split, found in report["samples"].items()}
    assert sum(samples.values()) == 448_527
    assert samples == {"train": 274_827, "val": 86_278, "test": 87_422}
    log = pq.read_table(raw / "assist2017.parquet").to_pydict()
    test = pq.read_table(tmp_path / "out/samples/test").to_pandas()
    code = {raw: code for code, raw in enumerate(sorted(set(log["user"])), 1)}
    wanted = {
        (code[user], position)
        for user, position, fold, problem, before, same in zip(
            log["user"], log["pos"], log["fold"], log["problem"], [None, *log["problem"]], [None, *log["user"]]
        )
        if fold == 5 and not (problem == before and same == user)
    }
    assert set(zip(test["user"], test["timestamp"])) == wanted
    with SeqVault.open(tmp_path / "out/vault") as vault:
        read = vault.read(test["user"].to_numpy(np.int64), before=test["timestamp"].to_numpy(), fields=["timestamp"])
    assert (read.lengths == test["timestamp"]).all()


def test_true_layout_in_small(tmp_path):
    """Five users, one a fold; the second attempt at a problem is history and no target."""
    rows = [
        (user, position, 10 + position // 2, position % 3 + 1, position % 2)
        for user in range(1, 6)
        for position in range(8)
    ]
    names = ("user", "pos", "problem", "skill", "correct")
    columns = {name: np.array(values, np.int32) for name, values in zip(names, zip(*rows))}
    table = pa.table(columns | {"fold": columns["user"].astype(np.int8)})
    (tmp_path / "raw").mkdir()
    pq.write_table(table, tmp_path / "raw/assist2017.parquet")
    report = prepare(RECIPE, tmp_path / "out", tmp_path / "raw")
    assert report["events"] == 40
    samples = {split: pq.read_table(tmp_path / "out/samples" / split).to_pydict() for split in ("train", "val", "test")}
    assert {split: sorted(set(found["user"])) for split, found in samples.items()} == {
        "train": [1, 2, 3],
        "val": [4],
        "test": [5],
    }
    assert samples["test"]["timestamp"] == [0, 2, 4, 6]
    assert samples["test"]["target_skill"] == [1, 3, 2, 1]
    items = pq.read_table(tmp_path / "out/items.parquet").to_pydict()
    assert items["problem_skills"] == [[0, 0, 0], [1, 2, 0], [1, 3, 0], [2, 3, 0], [1, 2, 0]]
