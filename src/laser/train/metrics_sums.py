"""Sums of float64 values that do not depend on the order of the terms, and the streaming metrics made of them.

A term is rounded once to a multiple of 2**-40 and then added as an integer; the error of a mean is below 5e-13.
Legend of shape suffixes: N rows of a block; C calibration bins.
"""

from __future__ import annotations

import math

import numpy as np

SCALE = 2**40
LARGEST = 2.0**31
"""Larger terms count as this much: only the loss of a row whose logit is beyond 2e9 is one."""
MAX_TERMS = 2**22
"""Terms of one call whose integer parts, and whose fractions, surely add up within int64."""


def exact_sum(value_N: np.ndarray) -> int:
    """Sum of at most ``MAX_TERMS`` values, each 0 or more, as a multiple of 2**-40."""
    assert len(value_N) <= MAX_TERMS, len(value_N)
    value_N = np.minimum(value_N, LARGEST)
    whole_N = np.floor(value_N)
    return int(whole_N.astype(np.int64).sum()) * SCALE + int(
        np.rint((value_N - whole_N) * SCALE).astype(np.int64).sum()
    )


class ProbabilitySums:
    """Running sums for log-loss, normalised entropy and calibration.

    Args:
        bins: equal-width probability bins of the expected calibration error.
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.reset()

    def reset(self) -> None:
        """Back to no rows."""
        self.loss = 0
        self.probability_C = [0] * self.bins
        self.rows_C = np.zeros(self.bins, np.int64)
        self.positives_C = np.zeros(self.bins, np.int64)

    def add(self, logit_N: np.ndarray, label_N: np.ndarray) -> None:
        """Add rows: finite float logits, bool labels."""
        logit_N = logit_N.astype(np.float64)
        self.loss += exact_sum(np.logaddexp(0.0, np.where(label_N, -logit_N, logit_N)))
        probability_N = np.exp(-np.logaddexp(0.0, -logit_N))
        bin_N = np.minimum((probability_N * self.bins).astype(np.int64), self.bins - 1)
        self.rows_C += np.bincount(bin_N, minlength=self.bins)
        self.positives_C += np.bincount(bin_N[label_N], minlength=self.bins)
        for index in np.unique(bin_N).tolist():
            self.probability_C[index] += exact_sum(probability_N[bin_N == index])

    def to_array(self) -> np.ndarray:
        """All sums as int64 that add up over processes; ``from_array`` reads them."""
        fixed = [divmod(value, SCALE) for value in (self.loss, *self.probability_C)]
        return np.concatenate([np.array(fixed, np.int64).ravel(), self.rows_C, self.positives_C])

    def from_array(self, array: np.ndarray) -> ProbabilitySums:
        """The sums of several processes' ``to_array``, added."""
        total = ProbabilitySums(self.bins)
        fixed, rest = array[: 2 * self.bins + 2].tolist(), array[2 * self.bins + 2 :]
        values = [whole * SCALE + fraction for whole, fraction in zip(fixed[::2], fixed[1::2], strict=True)]
        total.loss, total.probability_C = values[0], values[1:]
        total.rows_C, total.positives_C = rest[: self.bins], rest[self.bins :]
        return total

    def compute(self) -> dict[str, float]:
        """``log_loss``, ``normalized_entropy``, ``ece`` and ``predicted_over_observed``; NaN where not defined."""
        rows, positives = int(self.rows_C.sum()), int(self.positives_C.sum())
        nan = math.nan
        if rows == 0:
            return dict.fromkeys(("log_loss", "normalized_entropy", "ece", "predicted_over_observed"), nan)
        loss, rate = self.loss / (SCALE * rows), positives / rows
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) if 0 < rate < 1 else nan
        gaps = (abs(p - int(k) * SCALE) for p, k in zip(self.probability_C, self.positives_C, strict=True))
        observed = sum(self.probability_C) / (SCALE * positives) if positives else nan
        return {
            "log_loss": loss,
            "normalized_entropy": loss / entropy,
            "ece": sum(gaps) / (SCALE * rows),
            "predicted_over_observed": observed,
        }
