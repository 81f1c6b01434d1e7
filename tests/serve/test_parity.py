"""Train = serve: a whole test split scored from raw events that were appended in order of time.

Every sample is scored at its own time, after everything up to and at that time has been appended, as it would be in
real time; the answer is that of ``laser predict`` within rounding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from laser.schema import Schema
from laser.seqvault import SeqVault
from laser.serve import Request, Scorer

WITHOUT_EVENTS = 2
"""Users whose events the data set leaves out of the histories (tests/synthetic.py)."""


def raw_events(rows: dict[str, np.ndarray], chosen: np.ndarray) -> tuple[list[str], dict[str, list]]:
    chosen = chosen[rows["user"][chosen] > WITHOUT_EVENTS]
    events = {
        "timestamp": rows["timestamp"][chosen].tolist(),
        "item": [f"item-{code}" for code in rows["item"][chosen]],
        "rating": rows["rating"][chosen].tolist(),
    }
    return [f"user-{code}" for code in rows["user"][chosen]], events


def replay(scorer: Scorer, prepared: Path, many: int) -> np.ndarray:
    """Probabilities of the test split: events appended as they happened, samples scored as they came."""
    log = pq.read_table(prepared / "log.parquet").to_pydict()
    rows = {name: np.array(values) for name, values in log.items()}
    samples = pq.read_table(prepared / "samples" / "test").to_pylist()
    appended, answers, waiting = 0, [], []
    for number, sample in enumerate(samples):
        waiting.append(
            Request(
                f"user-{sample['user']}", [f"item-{sample['item']}"], {"device": sample["device"]}, sample["timestamp"]
            )
        )
        if len(waiting) < many and number + 1 < len(samples):
            continue
        until = int(np.searchsorted(rows["timestamp"], sample["timestamp"], side="right"))
        # In two halves, so that histories grow between requests and what is kept of them has to follow.
        for part in np.array_split(np.arange(appended, until), 2):
            scorer.append(*raw_events(rows, part))
        appended = until
        answers += scorer.score_many(waiting)
        waiting = []
    return np.concatenate(answers)


@pytest.mark.parametrize(("name", "many"), [("laser", 1), ("laser", 7), ("sharded", 7), ("din", 5)])
def test_serving_gives_what_training_predicts(trained, prepared, tmp_path, name, many):
    folder = trained(name)
    with SeqVault.create(tmp_path / "vault", Schema.load(folder / "bundle" / "schema.json")) as vault:
        found = replay(Scorer(folder / "bundle", vault), prepared, many)
    wanted = pq.read_table(folder / "run" / "predictions" / "test.parquet")["probability"].to_numpy()
    assert len(found) == len(wanted) > 150
    assert wanted.std() > 0.05  # it has learnt something that could be got wrong
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def test_many_candidates_give_what_each_gives_alone(trained, prepared, tmp_path):
    """Every test sample's item beside 40 others: the shared way of scoring, against ``laser predict``."""
    folder = trained("laser")
    samples = pq.read_table(prepared / "samples" / "test").to_pylist()
    items = [f"item-{code}" for code in range(1, 41)]
    requests = [
        Request(f"user-{s['user']}", [f"item-{s['item']}", *items], {"device": s["device"]}, s["timestamp"])
        for s in samples
    ]
    with SeqVault.open(prepared / "vault") as vault:
        scorer = Scorer(folder / "bundle", vault)
        found = scorer.score_many(requests)
        assert scorer.engine.rows.reused > 0
        uncached = Scorer(folder / "bundle", vault, cache_bytes=0).score_many(requests)
    wanted = pq.read_table(folder / "run" / "predictions" / "test.parquet")["probability"].to_numpy()
    np.testing.assert_allclose([answer[0] for answer in found], wanted, rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.concatenate(uncached), np.concatenate(found), rtol=0, atol=2e-6)
