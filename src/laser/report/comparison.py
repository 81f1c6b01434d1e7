"""The model beside the trivial references on the rows of its predictions: scores, intervals, history lengths.

Legend of shape suffixes: N rows of the predictions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laser.data.prepared import PreparedData
from laser.report.plots import bucket_names
from laser.report.references import Reference, Splits, fit_references
from laser.report.scores import bootstrap_auc, interval, scores

LENGTH_EDGES = (0, 1, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
LONG_HISTORY = 500


@dataclass(frozen=True)
class Comparison:
    """Predictions of a model and of the references on the same rows.

    Args:
        predictions: columns of the test predictions.
        references: by name, their probabilities on the same rows; may be empty.
    """

    predictions: dict[str, np.ndarray]
    references: dict[str, Reference]

    def score(self, probability_N: np.ndarray) -> dict[str, float]:
        """Metrics of a scoring of these rows."""
        return scores(probability_N, self.predictions["label"], self.predictions["user"])

    def best_reference(self, reference_scores: dict[str, dict[str, float]]) -> str | None:
        """The reference with the highest test AUC: picking it on the test split makes it the harder to beat."""
        ranked = {name: found["auc"] for name, found in reference_scores.items() if not math.isnan(found["auc"])}
        return max(ranked, key=lambda name: ranked[name]) if ranked else None

    def intervals(self, best: str | None) -> dict[str, Any]:
        """95 % intervals of the AUC, and of its difference to the best reference, over resampled users."""
        scorings = [self.predictions["probability"]] + ([self.references[best].probability_N] if best else [])
        auc_RS = bootstrap_auc(scorings, self.predictions["label"], self.predictions["user"])
        found: dict[str, Any] = {
            "method": "95 %, percentiles of a bootstrap over users",
            "replicates": len(auc_RS),
            "users": len(np.unique(self.predictions["user"])),
            "auc": interval(auc_RS[:, 0]),
        }
        if best:
            found |= {"best_reference": best, "auc_minus_best_reference": interval(auc_RS[:, 0] - auc_RS[:, 1])}
        return found

    def by_length(self, best: str | None) -> list[dict[str, Any]]:
        """Rows, AUC and GAUC per bucket of history length, and for all rows with at least 500 events."""
        length_N = self.predictions["history_length"]
        names = [*bucket_names(LENGTH_EDGES[:-1], LENGTH_EDGES[1:]), f"≥ {LENGTH_EDGES[-1]}"]
        bucket_N = np.searchsorted(LENGTH_EDGES, length_N, side="right") - 1
        chosen = [(name, bucket_N == index) for index, name in enumerate(names)]
        if (length_N >= LENGTH_EDGES[-4]).any():
            chosen.append((f"all ≥ {LONG_HISTORY}", length_N >= LONG_HISTORY))
        return [self._bucket(name, kept_N, best) for name, kept_N in chosen if kept_N.any()]

    def _bucket(self, name: str, kept_N: np.ndarray, best: str | None) -> dict[str, Any]:
        label, user = self.predictions["label"][kept_N], self.predictions["user"][kept_N]
        found: dict[str, Any] = {"events": name, "samples": int(kept_N.sum())}
        scorings = {"": self.predictions["probability"]} | (
            {"reference_": self.references[best].probability_N} if best else {}
        )
        for prefix, probability_N in scorings.items():
            kept = scores(probability_N[kept_N], label, user)
            found |= {f"{prefix}auc": kept["auc"], f"{prefix}gauc": kept["gauc"]}
        return found


def compare(predictions: dict[str, np.ndarray], prepared: Path | None) -> Comparison:
    """Fit the references on the prepared data set and line them up with the predictions.

    Raises:
        ValueError: when the predictions are not of this data set's test split.
    """
    if prepared is None:
        return Comparison(predictions, {})
    with PreparedData(prepared) as data:
        splits = Splits(data.schema, data.items, data.split("train"), data.split("val"), data.split("test"))
    row_N, test = predictions["row"], splits.test
    fits = len(row_N) == 0 or (row_N.min() >= 0 and row_N.max() < len(test))
    if not fits or not np.array_equal(test.label_N[row_N], predictions["label"].astype(test.label_N.dtype)):
        raise ValueError(
            f"the run's predictions are not of the test split of {prepared}: rows or labels differ; "
            "the data set was prepared again since: run laser fit and laser test again"
        )
    references = {
        name: Reference(found.title, found.note, found.probability_N[row_N], found.chosen)
        for name, found in fit_references(splits).items()
    }
    return Comparison(predictions, references)
