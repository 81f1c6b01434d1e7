"""References on logs small enough to count by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from laser.data.samples import Samples
from laser.report.references import Splits, counts_by, design, earlier_labels, fit_references, one_hot, smoothed
from laser.schema import Feature, Schema

SCHEMA = Schema(
    "tiny",
    (
        Feature(name="user", kind="user", dtype="int32", cardinality=8),
        Feature(name="item", kind="item", dtype="int32", cardinality=4),
        Feature(name="genres", kind="item_side", dtype="int32", cardinality=3, length=2),
        Feature(name="hour", kind="context", dtype="int32", cardinality=3),
        Feature(name="click", kind="label", dtype="uint8"),
        Feature(name="time", kind="timestamp", dtype="int64"),
    ),
)
ITEMS = {"genres": np.array([[0, 0], [1, 2], [2, 0], [0, 0]])}


def samples(*rows: tuple[int, int, int, int]) -> Samples:
    """Rows of user, item, time, label."""
    user, item, time, label = np.array(rows).T
    return Samples(user, item, time, label.astype(np.uint8), {"hour": np.ones(len(rows), np.int32)})


def splits(**changes: Samples) -> Splits:
    train = samples((1, 1, 10, 1), (1, 2, 20, 0), (2, 1, 10, 1), (2, 1, 30, 0), (0, 0, 5, 1))
    val = samples((1, 1, 40, 1), (2, 2, 40, 0))
    test = samples((1, 1, 50, 1), (1, 2, 50, 0), (2, 3, 60, 1), (5, 1, 60, 0))
    return Splits(SCHEMA, ITEMS, changes.get("train", train), changes.get("val", val), changes.get("test", test))


def test_priors_equal_hand_counts() -> None:
    found = fit_references(splits())
    rate = 3 / 5
    np.testing.assert_allclose(found["base_rate"].probability_N, rate)
    s = found["item_prior"].chosen["smoothing"]
    item = {1: (2 + s * rate) / (3 + s), 2: s * rate / (1 + s), 3: rate}
    np.testing.assert_allclose(found["item_prior"].probability_N, [item[1], item[2], item[3], item[1]])
    s = found["user_prior"].chosen["smoothing"]
    user = (1 + s * rate) / (2 + s)
    np.testing.assert_allclose(found["user_prior"].probability_N, [user, user, user, rate])


def test_smoothing_is_chosen_on_validation() -> None:
    """Items that keep their rate want little smoothing; items that swap it want much."""
    rows = [(1, 1 + i % 2, i, i % 2) for i in range(40)]
    same = fit_references(splits(train=samples(*rows), val=samples(*rows)))["item_prior"].chosen["smoothing"]
    swapped = samples(*((u, i, t, 1 - y) for u, i, t, y in rows))
    other = fit_references(splits(train=samples(*rows), val=swapped))["item_prior"].chosen["smoothing"]
    assert (same, other) == (0.5, 200.0)


def test_no_reference_uses_labels_of_the_test_split_at_or_after_the_sample() -> None:
    base = splits()
    late = samples(*((u, i, t, 1 - y) for u, i, t, y in [(1, 1, 50, 1), (1, 2, 50, 0), (2, 3, 60, 1), (5, 1, 60, 0)]))
    for name, found in fit_references(base).items():
        flipped = fit_references(splits(test=late))[name]
        np.testing.assert_array_equal(found.probability_N, flipped.probability_N, err_msg=name)


def test_earlier_labels_are_strictly_earlier_and_of_the_same_user() -> None:
    train, val, test = earlier_labels(splits())
    np.testing.assert_array_equal(np.stack(train, 1), [[0, 0], [1, 1], [0, 0], [1, 1], [0, 0]])
    np.testing.assert_array_equal(np.stack(val, 1), [[1, 2], [1, 2]])
    # both rows of user 1 have the same time: neither counts for the other
    np.testing.assert_array_equal(np.stack(test, 1), [[2, 3], [2, 3], [1, 3], [0, 0]])


def test_earlier_labels_equal_a_slow_count() -> None:
    random = np.random.default_rng(0)
    parts = [samples(*random.integers(0, [5, 4, 30, 2], (n, 4)).tolist()) for n in (60, 20, 20)]
    user, time, label = (np.concatenate([getattr(p, f) for p in parts]) for f in ("user_N", "timestamp_N", "label_N"))
    found = earlier_labels(splits(train=parts[0], val=parts[1], test=parts[2]))
    for row in range(100):
        earlier = (user == user[row]) & (time < time[row])
        positives, counted = (np.concatenate(columns)[row] for columns in zip(*found, strict=True))
        assert (positives, counted) == (label[earlier].sum(), earlier.sum())


def test_unknown_code_counts_nothing() -> None:
    positives, rows = counts_by(np.array([0, 0, 2]), np.array([1, 1, 1]), 3)
    assert positives.tolist() == [0, 0, 1]
    assert rows.tolist() == [0, 0, 1]
    assert smoothed(positives, rows, 1.0, 0.25).tolist() == [0.25, 0.25, 0.625]


def test_design_has_item_user_side_info_and_context() -> None:
    np.testing.assert_allclose(
        one_hot(np.array([[1, 2], [2, 0], [0, 0]]), 3).toarray(), [[0, 0.5, 0.5], [0, 0, 1], [0] * 3]
    )
    matrix: csr_matrix = design(splits(), splits().test)
    assert matrix.shape == (4, 4 + 8 + 3 + 3)
    np.testing.assert_allclose(matrix.toarray()[3], [0, 1, 0, 0] + [0] * 5 + [1, 0, 0] + [0, 0.5, 0.5] + [0, 1, 0])


def test_logistic_regression_recovers_item_and_user_effects() -> None:
    random = np.random.default_rng(0)
    effect_item, effect_user = np.array([0, -1.5, 0, 1.5]), np.linspace(-2, 2, 8)

    def draw(n: int, start: int) -> Samples:
        user, item = random.integers(1, 8, n), random.integers(1, 4, n)
        odds = effect_item[item] + effect_user[user]
        label = random.random(n) < 1 / (1 + np.exp(-odds))
        return samples(*np.stack([user, item, np.arange(n) + start, label], 1).tolist())

    whole = splits(train=draw(4000, 0), val=draw(1000, 5000), test=draw(1000, 9000))
    found = fit_references(whole)["item_user_logistic"].probability_N
    odds = effect_item[whole.test.item_N] + effect_user[whole.test.user_N]
    assert np.abs(found - 1 / (1 + np.exp(-odds))).max() < 0.1


def test_user_disjoint_split_says_so() -> None:
    disjoint = splits(test=samples((5, 1, 60, 1), (6, 1, 70, 0)))
    found = fit_references(disjoint)["user_prior"]
    assert "0% of the test rows" in found.note
    np.testing.assert_allclose(found.probability_N, 0.6)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_training_split(label: int) -> None:
    for found in fit_references(splits(train=samples((1, 1, 1, label), (2, 2, 2, label)))).values():
        np.testing.assert_allclose(found.probability_N.mean(), label, atol=0.7)
        assert np.isfinite(found.probability_N).all()


def test_item_prior_of_a_training_row_leaves_that_row_out() -> None:
    """Labels that do not depend on the item teach nothing; a row that counted in its own prior would teach much."""
    random = np.random.default_rng(0)
    features = [replace(f, cardinality=301) if f.name == "item" else f for f in SCHEMA.features]

    def draw(n: int) -> Samples:
        return samples(
            *np.stack([np.zeros(n), random.integers(1, 301, n), np.zeros(n), random.integers(0, 2, n)], 1).astype(int)
        )

    whole = Splits(
        Schema("noise", tuple(features)), {"genres": np.zeros((301, 2), int)}, draw(900), draw(900), draw(900)
    )
    assert fit_references(whole)["item_prior_user_rate_logistic"].probability_N.std() < 0.04
