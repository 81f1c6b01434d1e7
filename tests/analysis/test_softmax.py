"""Gates beside softmax weights."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import pearsonr, spearmanr

from laser.analysis import GateFile, agreement, implied_softmax
from laser.analysis.softmax import pairs

RANDOM = np.random.default_rng(0)
LENGTHS = [5, 0, 4, 1, 12, 3]
SCORES = [RANDOM.normal(size=(n, 2)) * 2 for n in LENGTHS]


def samples(values: list[np.ndarray]) -> list:
    return [(1, value.tolist()) for value in values]


def test_implied_weights_are_the_softmax_of_the_scores() -> None:
    off = np.array([0, 3, 4, 9])
    scores = RANDOM.normal(size=(9, 2)) * 3
    expected = np.concatenate([softmax(scores[a:b], axis=0) for a, b in pairwise(off)])
    np.testing.assert_allclose(implied_softmax(expit(scores - [1.7, 0.3]), off), expected, rtol=1e-9)
    rounded = expit(scores - 2.3).astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(implied_softmax(rounded, off), expected, rtol=0.05)
    assert np.isfinite(implied_softmax(np.array([[0.0], [1.0]]), np.array([0, 2]))).all()


def test_agreement_of_two_files_cut_differently(write_gates: Callable[..., Path]) -> None:
    gates = [expit(s) for s in SCORES]
    weights = [expit(s[:, ::-1] + RANDOM.normal(size=s.shape)) for s in SCORES]
    one = GateFile(write_gates(samples(gates), width=4, group=2))
    two = GateFile(write_gates(samples(weights), width=4, kind="softmax", group=5, name="two.parquet"))
    assert [len(a) for a, _ in pairs(one, two)] == [2, 2, 1, 1]
    found = agreement(one, two)
    a, b = np.concatenate(gates), np.concatenate(weights)
    for head in (0, 1):
        assert found.correlation_H[head] == pytest.approx(pearsonr(a[:, head], b[:, head])[0], abs=1e-3)
        ranks = []
        for gate, weight in zip(gates, weights):
            for stop in range(len(gate), 0, -4):
                part = slice(max(0, stop - 4), stop)
                if stop - part.start > 1:
                    ranks.append(spearmanr(gate[part, head], weight[part, head])[0])
        assert found.rank_correlation_H[head] == pytest.approx(np.mean(ranks), abs=1e-6)
    assert found.events_HNN.sum() == 2 * sum(LENGTHS)


def test_softmax_of_the_same_scores_ranks_alike(write_gates: Callable[..., Path]) -> None:
    found = agreement(GateFile(write_gates(samples([expit(s) for s in SCORES]), width=4)))
    np.testing.assert_allclose(found.rank_correlation_H, 1)


def test_files_of_other_samples_are_refused(write_gates: Callable[..., Path]) -> None:
    gates = [expit(s) for s in SCORES]
    one = GateFile(write_gates(samples(gates), width=4))
    for number, (other, width) in enumerate(((gates[:-1], 4), (gates, 3), ([*gates[1:], gates[0]], 4))):
        path = write_gates(samples(other), width=width, name=f"{number}.parquet")
        with pytest.raises(ValueError, match="max_history"):
            agreement(one, GateFile(path))
