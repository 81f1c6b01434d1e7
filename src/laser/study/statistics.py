"""What a study may conclude: means with intervals, paired tests, corrections, power laws. Pure functions of arrays.

Two things make a test figure uncertain. Another seed gives another model: the interval over seeds (Student's t) says
how much. Another sample of users gives other rows: the interval over users, a bootstrap that draws users with all their
rows, says how much. A comparison of two models has to survive both: users are drawn once for both, seeds for each.

Legend of shape suffixes: N rows; U users; S seeds; R bootstrap replicates; T distinct scores; M comparisons; P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from laser.report.scores import SMALLEST, Ranking

LEVEL = 0.95
METRICS = ("auc", "gauc", "log_loss")
MOST_USERS = 3000
"""With more users AUCs are taken from the rows of every replicate; the matrix of pairs of users would be too large."""


@dataclass(frozen=True)
class Mean:
    """A mean and the bounds of its interval; NaN where they are not defined."""

    value: float
    low: float
    high: float


def mean_over_seeds(value_S: Sequence[float]) -> Mean:
    """Mean and 95 % interval of Student's t; the interval of a single value is not defined."""
    value, count = float(np.mean(value_S)), len(value_S)
    if count < 2:
        return Mean(value, math.nan, math.nan)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * np.std(value_S, ddof=1) / math.sqrt(count))
    return Mean(value, value - half, value + half)


class UserScores:
    """AUC, GAUC and log-loss of one scoring, for any weights of users.

    Args:
        probability_N: scores in (0, 1).
        label_N: 0 or 1.
        user_N: index of each row's user among ``users``.
        users: U.
    """

    def __init__(self, probability_N: np.ndarray, label_N: np.ndarray, user_N: np.ndarray, users: int) -> None:
        self.user_N, self.users = user_N, users
        self.ranking = Ranking(probability_N, label_N)
        positive_N = label_N == 1
        p_N = np.clip(probability_N.astype(np.float64), SMALLEST, 1 - SMALLEST)
        loss_N = -np.log(np.where(positive_N, p_N, 1 - p_N))
        self.rows_U = np.bincount(user_N, minlength=users).astype(np.float64)
        self.loss_U = np.bincount(user_N, loss_N, users)
        self.positives_U = np.bincount(user_N, positive_N, users)
        self.negatives_U = self.rows_U - self.positives_U
        self.pairs_UU = _pairs_of_users(self.ranking, user_N, users) if users <= MOST_USERS else None
        self.own_auc_U = self._own_aucs(probability_N, label_N)

    def _own_aucs(self, probability_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
        both_U = self.positives_U * self.negatives_U
        if self.pairs_UU is not None:
            return np.divide(self.pairs_UU.diagonal(), both_U, out=np.full(self.users, np.nan), where=both_U > 0)
        order_N = np.argsort(self.user_N, kind="stable")
        parts = np.split(order_N, np.cumsum(self.rows_U.astype(int))[:-1])
        return np.array([Ranking(probability_N[part], label_N[part]).auc() for part in parts])

    def values(self, weight_RU: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics [R] under weights of users; NaN where one class is missing."""
        with np.errstate(invalid="ignore", divide="ignore"):
            gauc_U = np.where(np.isnan(self.own_auc_U), 0.0, self.rows_U)
            return {
                "auc": self._auc(weight_RU),
                "gauc": weight_RU @ np.nan_to_num(self.own_auc_U * gauc_U) / (weight_RU @ gauc_U),
                "log_loss": weight_RU @ self.loss_U / (weight_RU @ self.rows_U),
            }

    def _auc(self, weight_RU: np.ndarray) -> np.ndarray:
        if self.pairs_UU is None:
            return np.array([self.ranking.auc(weight_U[self.user_N]) for weight_U in weight_RU])
        pairs_R = (weight_RU @ self.positives_U) * (weight_RU @ self.negatives_U)
        return ((weight_RU @ self.pairs_UU) * weight_RU).sum(1) / np.where(pairs_R > 0, pairs_R, np.nan)


def _pairs_of_users(ranking: Ranking, user_N: np.ndarray, users: int) -> np.ndarray:
    """[U, U] numbers of correctly ordered pairs: positives of the row's user above negatives of the column's; ties 1/2.

    The area under the curve with weights of users is a quadratic form in this matrix.
    """
    sorted_N, positive_N = user_N[ranking.order_N], ranking.label_N
    group_N = np.repeat(np.arange(len(ranking.first_T)), np.diff(ranking.first_T, append=len(sorted_N)))
    pairs_UU = np.zeros((users, users))
    above, at = sorted_N[positive_N], group_N[positive_N]
    for user in range(users):
        negatives_T = np.bincount(group_N[(sorted_N == user) & ~positive_N], minlength=len(ranking.first_T))
        below_T = np.cumsum(negatives_T) - negatives_T / 2
        pairs_UU[:, user] = np.bincount(above, below_T[at], users)
    return pairs_UU


def draw_users(users: int, replicates: int, seed: int = 0) -> np.ndarray:
    """Weights [R, U] of a bootstrap: how often each user was drawn when U were drawn with replacement."""
    return np.random.default_rng(seed).multinomial(users, np.full(users, 1 / users), replicates).astype(np.float64)


def bootstrap_interval(value_R: np.ndarray) -> tuple[float, float]:
    """Central 95 % of replicates; NaN when none is defined."""
    value_R = value_R[~np.isnan(value_R)]
    if not len(value_R):
        return math.nan, math.nan
    low, high = np.quantile(value_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def draw_seeds(value_SR: np.ndarray, seed: int) -> np.ndarray:
    """Mean over seeds [R], where each replicate draws its S seeds with replacement; values [S, R]."""
    seeds, replicates = value_SR.shape
    drawn_SR = np.random.default_rng(seed).integers(0, seeds, (seeds, replicates))
    return np.take_along_axis(value_SR, drawn_SR, axis=0).mean(0)


def bootstrap_p(difference_R: np.ndarray) -> float:
    """Two-sided p-value of "no difference": twice the smaller share of replicates on one side of 0, at most 1.

    With R replicates it is never below 2 / (R + 1).
    """
    difference_R = difference_R[~np.isnan(difference_R)]
    sides = (difference_R <= 0).sum(), (difference_R >= 0).sum()
    return float(min(1.0, 2 * (min(sides) + 1) / (len(difference_R) + 1)))


@dataclass(frozen=True)
class Difference:
    """One model minus another: mean over seeds, interval over users and seeds, p-values.

    Args:
        value: difference of the means over seeds.
        low: lower bound, users and seeds drawn.
        high: upper bound.
        p: of the same bootstrap.
        p_seeds: of a t-test over seeds, paired; NaN with fewer than two seeds.
    """

    value: float
    low: float
    high: float
    p: float
    p_seeds: float


def compare(one_SR: np.ndarray, other_SR: np.ndarray, one_S: Sequence[float], other_S: Sequence[float]) -> Difference:
    """Compare two models on the same draws of users.

    Args:
        one_SR: bootstrap values of the one, a row per seed.
        other_SR: of the other, on the same users.
        one_S: values on all users, per seed.
        other_S: of the other.
    """
    difference_R = draw_seeds(one_SR, 1) - draw_seeds(other_SR, 2)
    low, high = bootstrap_interval(difference_R)
    value = float(np.mean(one_S) - np.mean(other_S))
    return Difference(value, low, high, bootstrap_p(difference_R), paired_t(one_S, other_S))


def paired_t(one_S: Sequence[float], other_S: Sequence[float]) -> float:
    """Two-sided p-value of Student's t-test on the differences of equal seeds; NaN with fewer than two pairs."""
    if len(one_S) != len(other_S) or len(one_S) < 2:
        return math.nan
    difference_S = np.subtract(one_S, other_S)
    spread = np.std(difference_S, ddof=1)
    if spread == 0:
        return 1.0 if difference_S[0] == 0 else 0.0
    t = difference_S.mean() / (spread / math.sqrt(len(difference_S)))
    return float(2 * stats.t.sf(abs(t), len(difference_S) - 1))


def holm(p_M: Sequence[float]) -> list[float]:
    """P-values corrected for M comparisons by Holm's step-down method (1979); NaN stays and does not count."""
    known = [index for index in np.argsort(p_M, kind="stable").tolist() if not math.isnan(p_M[index])]
    corrected, largest = [math.nan] * len(p_M), 0.0
    for place, index in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - place) * p_M[index]))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class PowerLaw:
    """``y = scale * x ** -exponent``, with the 95 % interval of the exponent and the share of variance explained."""

    scale: float
    exponent: Mean
    r_squared: float


def fit_power_law(x_P: Sequence[float], y_P: Sequence[float]) -> PowerLaw:
    """Least squares in logarithms; the interval is Student's t on the residuals of the points.

    Args:
        x_P: such as lengths; positive, at least two different.
        y_P: such as 1 - AUC; positive.

    Raises:
        ValueError: when there are too few points, or one is not positive.
    """
    if len(x_P) != len(y_P) or len(set(x_P)) < 2 or min(*x_P, *y_P) <= 0:
        raise ValueError(f"a power law needs positive points at two or more places, found x {x_P} and y {y_P}")
    fit = stats.linregress(np.log(x_P), np.log(y_P))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(x_P) - 2) * fit.stderr) if len(x_P) > 2 else math.nan
    exponent = -float(fit.slope)
    return PowerLaw(math.exp(fit.intercept), Mean(exponent, exponent - half, exponent + half), float(fit.rvalue**2))


def pareto(cost_M: Sequence[float], value_M: Sequence[float]) -> list[int]:
    """Indices, by rising cost, of what nothing beats: no other is at most as costly and better, or as good for less."""
    order = sorted(range(len(cost_M)), key=lambda index: (cost_M[index], -value_M[index]))
    best, found = -math.inf, []
    for index in order:
        if value_M[index] > best:
            best = value_M[index]
            found.append(index)
    return found
