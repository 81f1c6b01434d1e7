"""Trivial predictors on the same split as the model: what a figure means is how far it is from these.

All are fitted on the training split; what they leave open (smoothing, regularisation) is chosen on the validation
split by log-loss; the test split is only predicted. Users and items that training does not know get the global rate.
Legend of shape suffixes: N rows of a split; A rows of all splits, one after the other; F one-hot columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from laser.data.samples import Samples
from laser.report.scores import log_loss
from laser.schema import Feature, Kind, Schema

SMOOTHING = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
"""Rows of the global rate that are added to each item's or user's own rows."""
INVERSE_REGULARIZATION = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
LOGISTIC_ROWS = 5_000_000
"""Newest training rows that the one-hot logistic regression is fitted on; more would take longer than the model."""


@dataclass(frozen=True)
class Reference:
    """A trivial predictor: its probabilities on the test split, and what was chosen on the validation split."""

    title: str
    note: str
    probability_N: np.ndarray
    chosen: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Splits:
    """Everything a reference may look at."""

    schema: Schema
    items: dict[str, np.ndarray]
    train: Samples
    val: Samples
    test: Samples

    @property
    def rate(self) -> float:
        """Click rate of the training split."""
        return float((self.train.label_N == 1).mean())


def fit_references(splits: Splits) -> dict[str, Reference]:
    """All references by name, simplest first. Deterministic: no random number is drawn."""
    base = np.full(len(splits.test), splits.rate)
    return {
        "base_rate": Reference("Global rate", "click rate of the training split, for every row", base),
        "item_prior": _item_prior(splits),
        "user_prior": _user_prior(splits),
        "user_rate_so_far": _user_rate_so_far(splits),
        "item_prior_user_rate_logistic": _prior_and_rate(splits),
        "item_user_logistic": _item_user_logistic(splits),
    }


def smoothed(positives: np.ndarray, rows: np.ndarray, smoothing: float, rate: float) -> np.ndarray:
    """Click rate as if ``smoothing`` rows at the global ``rate`` had been seen before."""
    return (positives + smoothing * rate) / (rows + smoothing)


def counts_by(code_N: np.ndarray, label_N: np.ndarray, cardinality: int) -> tuple[np.ndarray, np.ndarray]:
    """Positives and rows of each code. Code 0 stands for all that is unknown and counts none."""
    rows = np.bincount(code_N, minlength=cardinality)
    positives = np.bincount(code_N[label_N == 1], minlength=cardinality)
    rows[0] = positives[0] = 0
    return positives, rows


def best_by_loss(candidates: Iterator[tuple[float, np.ndarray]], label_N: np.ndarray) -> float:
    """The setting whose validation probabilities have the lowest log-loss; the first of equals."""
    losses = {setting: log_loss(probability_N, label_N) for setting, probability_N in candidates}
    return min(losses, key=lambda setting: losses[setting])


def _prior(splits: Splits, feature: Feature, codes: Callable[[Samples], np.ndarray]) -> tuple[np.ndarray, float]:
    """Smoothed training click rate of each code of ``feature``, and the smoothing that validation prefers."""
    assert feature.cardinality is not None
    positives, rows = counts_by(codes(splits.train), splits.train.label_N, feature.cardinality)
    tried = ((s, smoothed(positives, rows, s, splits.rate)[codes(splits.val)]) for s in SMOOTHING)
    best = best_by_loss(tried, splits.val.label_N)
    return smoothed(positives, rows, best, splits.rate), best


def _item_prior(splits: Splits) -> Reference:
    rate, best = _prior(splits, splits.schema.item, lambda samples: samples.item_N)
    note = "smoothed click rate of the item in the training split"
    return Reference("Item prior", note, rate[splits.test.item_N], {"smoothing": best})


def _user_prior(splits: Splits) -> Reference:
    note = "smoothed click rate of the user in the training split"
    known = np.isin(splits.test.user_N, np.unique(splits.train.user_N)).mean()
    if known < 0.5:
        note += f"; only {known:.0%} of the test rows are of a user seen in training, the others get the global rate"
    if splits.schema.user.cardinality is None:
        return Reference("User prior", note + "; user ids are not coded here", np.full(len(splits.test), splits.rate))
    rate, best = _prior(splits, splits.schema.user, lambda samples: samples.user_N)
    return Reference("User prior", note, rate[splits.test.user_N], {"smoothing": best})


def earlier_labels(splits: Splits) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per split (train, val, test), for each row: positives and rows of the same user at strictly earlier times."""
    parts = (splits.train, splits.val, splits.test)
    user_A = np.concatenate([part.user_N for part in parts])
    time_A = np.concatenate([part.timestamp_N for part in parts])
    label_A = np.concatenate([part.label_N for part in parts]) == 1
    order_A = np.lexsort((time_A, user_A))
    user, time = user_A[order_A], time_A[order_A]
    before_A = np.concatenate([[0], np.cumsum(label_A[order_A])])
    new_user = np.concatenate([[True], user[1:] != user[:-1]])
    new_time = new_user | np.concatenate([[True], time[1:] != time[:-1]])
    position = np.arange(len(user))
    user_start, time_start = (np.maximum.accumulate(np.where(new, position, 0)) for new in (new_user, new_time))
    positives_A, rows_A = np.empty(len(user), np.int64), np.empty(len(user), np.int64)
    positives_A[order_A] = before_A[time_start] - before_A[user_start]
    rows_A[order_A] = time_start - user_start
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return list(zip(np.split(positives_A, ends), np.split(rows_A, ends), strict=True))


def _user_rate_so_far(splits: Splits) -> Reference:
    _, val, test = earlier_labels(splits)
    best = best_by_loss(((s, smoothed(*val, s, splits.rate)) for s in SMOOTHING), splits.val.label_N)
    note = "smoothed click rate of the user's own rows before the sample's time, of any split: point in time"
    return Reference("User rate so far", note, smoothed(*test, best, splits.rate), {"smoothing": best})


def _logit(probability_N: np.ndarray) -> np.ndarray:
    return np.log(probability_N) - np.log1p(-probability_N)


def _prior_and_rate(splits: Splits) -> Reference:
    """Two-feature logistic regression; a training row does not count in its own item's prior."""
    title, note = "Item prior + user rate so far", "logistic regression on the log-odds of the two"
    if not 0 < splits.rate < 1:
        return Reference(title, note, np.full(len(splits.test), splits.rate))
    cardinality = splits.schema.item.cardinality
    assert cardinality is not None
    positives, rows = counts_by(splits.train.item_N, splits.train.label_N, cardinality)
    so_far = earlier_labels(splits)
    parts = (splits.train, splits.val, splits.test)

    def features(index: int, smoothing: float) -> np.ndarray:
        item_N = parts[index].item_N
        counted = (rows[item_N] > 0).astype(np.int64) if index == 0 else 0
        own = counted * (parts[0].label_N == 1) if index == 0 else 0
        prior_N = smoothed(positives[item_N] - own, rows[item_N] - counted, smoothing, splits.rate)
        return np.stack([_logit(prior_N), _logit(smoothed(*so_far[index], smoothing, splits.rate))], axis=1)

    models = {s: logistic(features(0, s), splits.train.label_N, strength=1.0) for s in SMOOTHING[::2]}
    best = best_by_loss(((s, model(features(1, s))) for s, model in models.items()), splits.val.label_N)
    return Reference(title, note, models[best](features(2, best)), {"smoothing": best})


def logistic(features_NF: Any, label_N: np.ndarray, strength: float) -> Callable[[Any], np.ndarray]:
    """Fit a logistic regression with L2 penalty 1 / ``strength``; the result maps features to probabilities."""
    model: Any = LogisticRegression(C=strength, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one that stops early is judged like any other
        model.fit(features_NF, label_N)
    return lambda features: model.predict_proba(features)[:, 1]


def one_hot(codes: np.ndarray, cardinality: int) -> Any:
    """One-hot CSR rows of codes [N], or means of one-hot rows of [N, K] without its padding; code 0 is all zeros."""
    codes = codes.reshape(len(codes), -1)
    row, column = np.nonzero(codes)
    weight = 1.0 / np.maximum((codes != 0).sum(axis=1), 1)
    return csr_matrix((weight[row], (row, codes[row, column])), shape=(len(codes), cardinality))


def design(splits: Splits, samples: Samples) -> Any:
    """One-hot user, item, item side info and context of samples, [N, F]."""
    schema = splits.schema
    columns: list[tuple[Feature, np.ndarray]] = [(schema.item, samples.item_N)]
    if schema.user.cardinality is not None:
        columns.append((schema.user, samples.user_N))
    columns += [(f, splits.items[f.name][samples.item_N]) for f in schema.of_kind(Kind.ITEM_SIDE) if f.cardinality]
    columns += [(f, samples.context[f.name]) for f in schema.of_kind(Kind.CONTEXT) if f.cardinality]
    return hstack([one_hot(codes, feature.cardinality or 0) for feature, codes in columns], format="csr")


def _item_user_logistic(splits: Splits) -> Reference:
    title, note = "Item x user logistic regression", "one-hot user, item, item side info and context; L2"
    if not 0 < splits.rate < 1:
        return Reference(title, note, np.full(len(splits.test), splits.rate))
    newest = slice(max(0, len(splits.train) - LOGISTIC_ROWS), None)
    if newest.start:
        note += f"; fitted on the newest {LOGISTIC_ROWS:,} of {len(splits.train):,} training rows"
    train = splits.train.take(np.arange(len(splits.train))[newest])
    train_NF, val_NF, test_NF = (design(splits, samples) for samples in (train, splits.val, splits.test))
    models = {strength: logistic(train_NF, train.label_N, strength) for strength in INVERSE_REGULARIZATION}
    best = best_by_loss(((c, model(val_NF)) for c, model in models.items()), splits.val.label_N)
    return Reference(title, note, models[best](test_NF), {"C": best})
