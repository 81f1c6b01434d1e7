"""ASSISTments-2017 by its protocol; needs the file, whose folder is given by LASER_ASSISTMENTS."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
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
