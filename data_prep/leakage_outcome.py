"""A feature known when the sample is scored must not be the outcome in disguise.

Each context feature alone scores the held-out samples by the label share that its value had among training samples.
Real features leave most of the label open; the outcome itself, or what is computed from it, orders the samples almost
perfectly. What leaks less than that cannot be told from a good feature and is not found here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from laser.schema import Kind, Schema

SUSPICIOUS_AUC = 0.99
FEW = 10
"""Held-out samples of either label below which a perfect order may be chance."""
MOST_ROWS = 1_000_000
"""Samples of a split that are read: every so many row groups."""


def outcome_in_disguise(folder: Path, schema: Schema) -> list[str]:
    """One sentence per context feature that gives the label away.

    Args:
        folder: a prepared data set with samples/.
        schema: of it.
    """
    features = [feature for feature in schema.of_kind(Kind.CONTEXT) if feature.cardinality and feature.length == 1]
    if not features:
        return []
    names = [schema.label.name, *(feature.name for feature in features)]
    train = _columns(folder / "samples" / "train", names)
    held_out = _columns(folder / "samples" / "test", names)
    found = []
    for feature in features:
        size = int(feature.cardinality or 1)
        auc = _auc(train[feature.name], train[names[0]], held_out[feature.name], held_out[names[0]], size)
        if auc is not None and auc > SUSPICIOUS_AUC:
            told = f"context feature {feature.name!r} alone orders test samples with AUC {auc:.4f}"
            found.append(f"{told}: it is the label or was computed from it")
    return found


def _columns(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    files = [pq.ParquetFile(path) for path in sorted(folder.glob("*.parquet"))]
    groups = [(file, group) for file in files for group in range(file.num_row_groups)]
    stride = max(1, sum(file.metadata.num_rows for file in files) // MOST_ROWS)
    tables = [file.read_row_group(group, columns=names) for file, group in groups[::stride]]
    return {name: np.concatenate([table[name].to_numpy() for table in tables]).astype(np.int64) for name in names}


def _auc(code: np.ndarray, label: np.ndarray, held_code: np.ndarray, held_label: np.ndarray, size: int) -> float | None:
    rows, clicks = np.bincount(code, minlength=size), np.bincount(code, label, size)
    mean = label.mean()
    rate = (clicks + mean) / (rows + 1)
    positive, negative = (np.bincount(held_code[held_label == value], minlength=size) for value in (1, 0))
    if min(positive.sum(), negative.sum()) < FEW:
        return None
    _, place = np.unique(rate, return_inverse=True)
    positive, negative = np.bincount(place, positive), np.bincount(place, negative)
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))
