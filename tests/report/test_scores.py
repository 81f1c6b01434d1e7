import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score, roc_curve

from laser.report.scores import Ranking, bootstrap_auc, gauc, interval, scores
from laser.train.metrics import CTRMetrics


def rows(seed: int, n: int, users: int, digits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    probability = np.round(random.uniform(0.06, 0.94, n), digits)
    return probability, (random.random(n) < probability).astype(np.uint8), random.integers(0, users, n)


@pytest.mark.parametrize("digits", [1, 8])
def test_scores_equal_scikit_learn_and_the_streamed_metrics(digits: int) -> None:
    probability, label, user = rows(0, 3000, 200, digits)
    found = scores(probability, label, user)
    assert found["auc"] == pytest.approx(roc_auc_score(label, probability), abs=1e-12)
    assert found["log_loss"] == pytest.approx(sklearn_log_loss(label, probability), abs=1e-12)
    streamed = CTRMetrics()
    streamed.update(torch.logit(torch.tensor(probability)), torch.tensor(label), torch.tensor(user))
    expected = streamed.compute()
    for name in ("gauc", "normalized_entropy", "predicted_over_observed"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)
    if digits == 8:
        assert found["ece"] == pytest.approx(expected["ece"], abs=1e-3)


def test_weights_are_repetitions() -> None:
    probability, label, _ = rows(1, 300, 5, 1)
    weight = np.random.default_rng(2).integers(0, 4, 300)
    repeated = Ranking(np.repeat(probability, weight), np.repeat(label, weight)).auc()
    assert Ranking(probability, label).auc(weight.astype(float)) == pytest.approx(repeated, abs=1e-12)


def test_curve_equals_scikit_learn() -> None:
    probability, label, _ = rows(3, 500, 5, 2)
    false_rate, true_rate = Ranking(probability, label).curve()
    expected = roc_curve(label, probability, drop_intermediate=False)
    np.testing.assert_allclose(false_rate, expected[0])
    np.testing.assert_allclose(true_rate, expected[1])


def test_gauc_by_hand() -> None:
    # user 1: one pair, right; user 2: pairs (.5, .5) tie and (.1, .5) right; user 3: one class
    score = np.array([0.2, 0.8, 0.5, 0.5, 0.1, 0.9])
    label = np.array([0, 1, 0, 1, 0, 1])
    user = np.array([1, 1, 2, 2, 2, 3])
    assert gauc(score, label, user) == pytest.approx((2 * 1.0 + 3 * 0.75) / 5)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_undefined_is_nan(n: int) -> None:
    found = scores(np.full(n, 0.5), np.ones(n), np.zeros(n, int))
    assert math.isnan(found["auc"])
    assert math.isnan(found["gauc"])
    assert math.isnan(found["normalized_entropy"])


def test_probabilities_of_zero_and_one_have_a_loss() -> None:
    assert math.isfinite(scores(np.array([0.0, 1.0]), np.array([1, 0]), np.array([0, 0]))["log_loss"])


def test_interval_over_users_covers_the_truth() -> None:
    """Users share a bias, so rows are correlated; the 95 % interval must still hold the true AUC about that often."""
    random = np.random.default_rng(7)

    def draw(users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        user = np.repeat(np.arange(users), 10)
        bias = random.normal(0, 1.5, users)[user]
        return bias + random.normal(size=len(user)), (random.random(len(user)) < 1 / (1 + np.exp(-bias))), user

    score, label, _ = draw(40_000)
    truth = Ranking(score, label).auc()
    covered = clustered = independent = 0
    for seed in range(60):
        score, label, user = draw(60)
        low, high = interval(bootstrap_auc([score], label, user, seed)[:, 0])
        covered += low <= truth <= high
        clustered += high - low
        low, high = interval(bootstrap_auc([score], label, np.arange(len(user)), seed)[:200, 0])
        independent += high - low
    assert covered >= 50
    assert clustered > 1.3 * independent


def test_difference_is_over_the_same_resamples() -> None:
    probability, label, user = rows(4, 500, 50, 8)
    auc_RS = bootstrap_auc([probability, probability], label, user)
    assert auc_RS.shape == (1000, 2)
    np.testing.assert_array_equal(auc_RS[:, 0], auc_RS[:, 1])
    assert interval(np.full(3, np.nan)) == pytest.approx([math.nan] * 2, nan_ok=True)
