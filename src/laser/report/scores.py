"""How well probabilities rank and fit labels, for predictions that lie in memory; and user-clustered intervals.

The definitions are those of ``laser.train.metrics``, which streams logits; here scores are the stored probabilities.
Legend of shape suffixes: N rows; T distinct scores; U users; R bootstrap replicates.
"""

from __future__ import annotations

import math

import numpy as np

ECE_BINS = 15
SMALLEST = 1e-7
"""Probabilities are kept this far from 0 and 1 in the log-loss: a stored float32 can be exactly 0 or 1."""
BOOTSTRAP_WORK = 200_000_000
"""Rows times replicates; more rows get fewer replicates, though never fewer than 100."""


class Ranking:
    """Rows in the order of their scores, for areas under the ROC curve with any row weights.

    Args:
        score_N: higher means more likely.
        label_N: 0 or 1.
    """

    def __init__(self, score_N: np.ndarray, label_N: np.ndarray) -> None:
        self.order_N = np.argsort(score_N, kind="stable")
        sorted_N = score_N[self.order_N]
        self.label_N = label_N[self.order_N] == 1
        self.first_T = np.flatnonzero(np.concatenate([np.ones(min(len(sorted_N), 1), bool), np.diff(sorted_N) != 0]))

    def counts(self, weight_N: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Weight of negatives and of positives per distinct score, float64 [T] each, lowest score first."""
        weight = np.ones(len(self.order_N)) if weight_N is None else weight_N[self.order_N]
        if not len(self.first_T):
            return np.zeros(0), np.zeros(0)
        positives_T = np.add.reduceat(np.where(self.label_N, weight, 0.0), self.first_T)
        return np.add.reduceat(weight, self.first_T) - positives_T, positives_T

    def auc(self, weight_N: np.ndarray | None = None) -> float:
        """Area under the curve, ties at their average rank; NaN for one class only."""
        negatives_T, positives_T = self.counts(weight_N)
        pairs = negatives_T.sum() * positives_T.sum()
        area = (positives_T * (np.cumsum(negatives_T) - negatives_T / 2)).sum()
        return float(area / pairs) if pairs else math.nan

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """False and true positive rates from (0, 0) to (1, 1), one point per distinct score."""
        negatives_T, positives_T = self.counts()
        below = [
            np.concatenate([[0.0], np.cumsum(counts[::-1])]) / max(counts.sum(), 1)
            for counts in (negatives_T, positives_T)
        ]
        return below[0], below[1]


def gauc(score_N: np.ndarray, label_N: np.ndarray, user_N: np.ndarray) -> float:
    """Mean of per-user AUCs weighted by the user's rows; users of one class are left out. NaN when none is left."""
    if not len(score_N):
        return math.nan
    order_N = np.lexsort((score_N, user_N))
    user, score, positive = user_N[order_N], score_N[order_N], (label_N[order_N] == 1).astype(np.int64)
    new_user_N = np.concatenate([[True], user[1:] != user[:-1]])
    first_T = np.flatnonzero(new_user_N | np.concatenate([[True], score[1:] != score[:-1]]))
    positives_T = np.add.reduceat(positive, first_T)
    negatives_T = np.diff(first_T, append=len(user)) - positives_T
    first_U = np.flatnonzero(new_user_N[first_T])
    below_T = np.cumsum(negatives_T) - negatives_T
    below_T -= np.repeat(below_T[first_U], np.diff(first_U, append=len(first_T)))
    area_U = np.add.reduceat(positives_T * (below_T + negatives_T / 2), first_U)
    positives_U, negatives_U = np.add.reduceat(positives_T, first_U), np.add.reduceat(negatives_T, first_U)
    both_U = (positives_U > 0) & (negatives_U > 0)
    rows_U = (positives_U + negatives_U)[both_U]
    auc_U = area_U[both_U] / (positives_U * negatives_U)[both_U]
    return float((rows_U * auc_U).sum() / rows_U.sum()) if rows_U.size else math.nan


def log_loss(probability_N: np.ndarray, label_N: np.ndarray) -> float:
    """Mean binary cross-entropy in nats; NaN without rows."""
    p_N = np.clip(probability_N.astype(np.float64), SMALLEST, 1 - SMALLEST)
    return float(-np.log(np.where(label_N == 1, p_N, 1 - p_N)).mean()) if len(p_N) else math.nan


def scores(probability_N: np.ndarray, label_N: np.ndarray, user_N: np.ndarray) -> dict[str, float]:
    """The metrics of a split under their common names; NaN where one is not defined."""
    probability_N = probability_N.astype(np.float64)
    rows, positives = len(label_N), int((label_N == 1).sum())
    rate, loss = positives / max(rows, 1), log_loss(probability_N, label_N)
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) if 0 < rate < 1 else math.nan
    bin_N = np.minimum((probability_N * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gap_C = np.bincount(bin_N, weights=probability_N - (label_N == 1), minlength=ECE_BINS)
    return {
        "auc": Ranking(probability_N, label_N).auc(),
        "gauc": gauc(probability_N, label_N, user_N),
        "log_loss": loss,
        "normalized_entropy": loss / entropy,
        "ece": float(np.abs(gap_C).sum() / rows) if rows else math.nan,
        "predicted_over_observed": float(probability_N.sum() / positives) if positives else math.nan,
    }


def bootstrap_auc(scores_N: list[np.ndarray], label_N: np.ndarray, user_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """AUCs of several scorings on the same resamples of users, [R, scorings].

    Users are drawn with replacement, each with all rows: rows of one user are not independent, so resampling rows
    would give intervals that are too narrow. R is at most 1000; replicates with one class only are NaN.
    """
    number_U, user_index_N = np.unique(user_N, return_inverse=True)
    replicates = int(np.clip(BOOTSTRAP_WORK // max(len(label_N), 1), 100, 1000))
    rankings = [Ranking(score_N, label_N) for score_N in scores_N]
    random = np.random.default_rng(seed)
    auc_RS = np.empty((replicates, len(rankings)))
    for replicate in range(replicates):
        drawn_U = random.integers(0, len(number_U), len(number_U))
        weight_N = np.bincount(drawn_U, minlength=len(number_U)).astype(np.float64)[user_index_N]
        auc_RS[replicate] = [ranking.auc(weight_N) for ranking in rankings]
    return auc_RS


def interval(value_R: np.ndarray) -> list[float]:
    """Bounds of the central 95 % of the replicates; NaN when none is defined."""
    value_R = value_R[~np.isnan(value_R)]
    return np.percentile(value_R, [2.5, 97.5]).tolist() if value_R.size else [math.nan, math.nan]
