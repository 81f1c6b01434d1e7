"""Statistics of a study against scipy and scikit-learn, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from laser.report.scores import gauc
from laser.study import statistics
from laser.study.statistics import (
    UserScores,
    bootstrap_interval,
    bootstrap_p,
    compare,
    draw_users,
    fit_power_law,
    holm,
    mean_over_seeds,
    paired_t,
    pareto,
)


def rows(seed: int, users: int = 40, n: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities with many ties, labels that follow them, users; the first two users have one class each."""
    random = np.random.default_rng(seed)
    probability = np.round(random.uniform(0.05, 0.95, n), 2)
    user = random.integers(0, users, n)
    label = (random.random(n) < probability).astype(np.int8)
    label[user < 2] = user[user < 2]
    return probability, label, user


def test_a_mean_has_the_interval_of_students_t():
    values = [0.78, 0.79, 0.785, 0.792, 0.781]
    found = mean_over_seeds(values)
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high), abs=1e-12)
    # By hand: mean 2, deviation 1, t(0.975, 2) = 4.302653, root of 3.
    by_hand = mean_over_seeds([1.0, 2.0, 3.0])
    assert by_hand.high - by_hand.value == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)
    assert math.isnan(mean_over_seeds([0.7]).low)


@pytest.mark.parametrize("most_users", [3000, 10])
def test_values_with_weights_of_users_are_those_of_repeated_rows(monkeypatch, most_users):
    """Both ways of taking the AUC: from the matrix of pairs of users, and from the rows."""
    monkeypatch.setattr(statistics, "MOST_USERS", most_users)
    probability, label, user = rows(0)
    weight_RU = draw_users(40, 5)
    assert (weight_RU.sum(1) == 40).all()
    found = UserScores(probability, label, user, 40).values(weight_RU)
    for replicate, weight_U in enumerate(weight_RU.astype(int)):
        again = np.repeat(np.arange(len(user)), weight_U[user])
        assert found["auc"][replicate] == pytest.approx(roc_auc_score(label[again], probability[again]), abs=1e-12)
        loss = log_loss(label[again], probability[again])
        assert found["log_loss"][replicate] == pytest.approx(loss, abs=1e-12)
    everyone = UserScores(probability, label, user, 40).values(np.ones((1, 40)))
    assert everyone["gauc"][0] == pytest.approx(gauc(probability, label, user), abs=1e-12)


def test_a_draw_of_one_class_has_no_auc():
    probability, label, user = rows(1)
    only_first_user = np.eye(40)[:1]
    found = UserScores(probability, label, user, 40).values(only_first_user)
    assert math.isnan(found["auc"][0])
    assert math.isnan(found["gauc"][0])
    assert found["log_loss"][0] > 0
    assert math.isnan(bootstrap_interval(found["auc"])[0])


def test_intervals_cover_the_truth():
    """Of 200 samples of users, about 95 % have an interval around the AUC of all users."""
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        offset_U = random.normal(size=60)
        user = np.repeat(np.arange(60), 8)
        label = (random.random(480) < 0.5).astype(np.int8)
        score = 1 / (1 + np.exp(-(label + offset_U[user] + random.normal(size=480))))
        value_R = UserScores(score, label, user, 60).values(draw_users(60, 300, trial))["auc"]
        low, high = bootstrap_interval(value_R)
        covered += low < stats.norm.cdf(1 / 2) < high  # difference of two N(0, 2) is N(1, 4) here
    assert 180 <= covered <= 199, covered


def test_paired_t_is_scipys():
    random = np.random.default_rng(0)
    one, other = random.normal(1, 1, 6), random.normal(0.5, 1, 6)
    assert paired_t(one, other) == pytest.approx(stats.ttest_rel(one, other).pvalue, abs=1e-12)
    assert paired_t([1.0, 2.0], [1.0, 2.0]) == 1
    assert math.isnan(paired_t([1.0], [2.0]))


def test_holm_by_hand():
    # Sorted 0.005 0.01 0.03 0.04, times 4 3 2 1: 0.02 0.03 0.06 0.04; the last may not be below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    corrected = holm([0.02, math.nan, 0.03])
    assert corrected[0] == pytest.approx(0.04)
    assert math.isnan(corrected[1])
    assert holm([]) == []


def test_bootstrap_p_by_hand():
    assert bootstrap_p(np.array([0.1] * 97 + [-0.1] * 2)) == pytest.approx(2 * 3 / 100)
    assert bootstrap_p(np.zeros(9)) == 1
    assert bootstrap_p(np.full(999, -1.0)) == pytest.approx(0.002)


def test_a_comparison_sees_a_difference_that_is_there_and_none_that_is_not():
    _, label, user = rows(3, n=4000)
    random = np.random.default_rng(1)
    weight_RU, everyone = draw_users(40, 500), np.ones((1, 40))

    def model(strength: float) -> tuple[np.ndarray, list[float]]:
        seeds = []
        for _ in range(4):
            logit = strength * (label - 0.5) + random.normal(size=len(label))
            seeds.append(UserScores(1 / (1 + np.exp(-logit)), label, user, 40))
        return (
            np.stack([scores.values(weight_RU)["auc"] for scores in seeds]),
            [float(scores.values(everyone)["auc"][0]) for scores in seeds],
        )

    strong, weak, weak_again = model(1.5), model(1.0), model(1.0)
    better = compare(strong[0], weak[0], strong[1], weak[1])
    assert better.value > 0.05
    assert 0 < better.low < better.value < better.high
    assert better.p < 0.01
    assert better.p_seeds < 0.01
    same = compare(weak_again[0], weak[0], weak_again[1], weak[1])
    assert same.low < 0 < same.high
    assert same.p > 0.05


def test_power_law_by_hand_and_by_scipy():
    exact = fit_power_law([1, 2, 4, 8], [3.0, 1.5, 0.75, 0.375])
    assert (exact.scale, exact.exponent.value, exact.r_squared) == pytest.approx((3, 1, 1), abs=1e-9)
    random = np.random.default_rng(0)
    x = np.repeat([100, 200, 500, 1000], 5)
    y = 0.5 * x**-0.05 * np.exp(random.normal(0, 0.003, 20))
    found = fit_power_law(x.tolist(), y.tolist())
    fit = stats.linregress(np.log(x), np.log(y))
    assert found.exponent.value == pytest.approx(-fit.slope)
    assert found.exponent.high - found.exponent.value == pytest.approx(stats.t.ppf(0.975, 18) * fit.stderr)
    assert found.exponent.low < 0.05 < found.exponent.high
    assert math.isnan(fit_power_law([1, 2], [2.0, 1.0]).exponent.low)
    with pytest.raises(ValueError, match="two or more places"):
        fit_power_law([5, 5], [1.0, 2.0])


def test_pareto_by_hand():
    assert pareto([3, 1, 2, 2, 5], [0.8, 0.7, 0.6, 0.75, 0.8]) == [1, 3, 0]
