"""What smaller embedding tables cost in accuracy: AUC and log-loss of a test split from bundles of each precision.

    python benchmarks/serve/table_precision.py --data prepared/movielens_small --out results -c conf/demo.yaml
        [any option of laser export but --tables and --out]

Every bundle scores the whole split through the scorer's engine, each sample at its own time. The interval is that of
the difference to fp32 over 1000 resamples of users (95 %).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

from laser.data.prepared import PreparedData
from laser.exporting import main as export
from laser.serve import Scorer
from laser.serve.rows import PRECISIONS
from laser.serve.writing import golden_request

AT_ONCE = 256
RESAMPLES = 1000


def scores(bundle: Path, data: PreparedData) -> np.ndarray:
    scorer, samples = Scorer(bundle, data.vault), data.split("test")
    requests = [golden_request(samples, np.array([row]), row) for row in range(len(samples))]
    found = []
    for first in range(0, len(requests), AT_ONCE):
        some = requests[first : first + AT_ONCE]
        found += scorer.engine.score(some, scorer.read(some))
    return np.concatenate(found)


def interval(user: np.ndarray, label: np.ndarray, a: np.ndarray, b: np.ndarray) -> list[float]:
    """95 % of the difference in AUC of ``a`` less ``b`` when users are drawn with replacement."""
    rng = np.random.default_rng(0)
    rows = np.split(np.argsort(user, kind="stable"), np.cumsum(np.unique(user, return_counts=True)[1])[:-1])
    differences = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([rows[place] for place in rng.integers(0, len(rows), len(rows))])
        differences.append(roc_auc_score(label[chosen], a[chosen]) - roc_auc_score(label[chosen], b[chosen]))
    return [round(float(value), 6) for value in np.quantile(differences, [0.025, 0.975])]


def main() -> None:
    place = {name: sys.argv.index(name) for name in ("--data", "--out")}
    data_path, out = (Path(sys.argv[at + 1]) for at in place.values())
    rest = [a for i, a in enumerate(sys.argv[1:], 1) if not any(i in (at, at + 1) for at in place.values())]
    work = Path(tempfile.mkdtemp())
    found, exact = {}, np.empty(0)
    try:
        with PreparedData(data_path) as data:
            samples = data.split("test")
            for precision in PRECISIONS:
                bundle = work / precision
                export([*rest, "--data.path", str(data_path), "--tables", precision, "--out", str(bundle)])
                probability = scores(bundle, data).astype(np.float64)
                exact = probability if precision == "fp32" else exact
                found[precision] = {
                    "bytes": (bundle / "tables.safetensors").stat().st_size,
                    "auc": round(float(roc_auc_score(samples.label_N, probability)), 6),
                    "log_loss": round(float(log_loss(samples.label_N, probability)), 6),
                    "auc_less_fp32": interval(samples.user_N, samples.label_N, probability, exact),
                    "largest_difference": round(float(np.abs(probability - exact).max()), 6),
                }
                print(precision, json.dumps(found[precision]), flush=True)
    finally:
        shutil.rmtree(work)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table_precision.json").write_text(json.dumps({"samples": len(samples), "tables": found}, indent=1))


if __name__ == "__main__":
    main()
