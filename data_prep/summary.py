"""``report.json``: what was read, what was refused, what came out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import numpy as np

from data_prep.leakage_findings import Findings
from data_prep.recipe import SPLITS, Recipe
from data_prep.writing import Coded
from laser.schema import Schema

TEXTUAL = ("note", "raw", "expected")
"""Keys of a recipe that change nothing in the data set."""
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
REPORT_VERSION = 1


def describe(
    recipe: Recipe,
    schema: Schema,
    rows: dict[str, Any],
    coded: Coded,
    known: dict[str, float],
    ids: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """The report before the leakage check: all that is known from the log.

    Args:
        recipe: of the data set.
        schema: of the data set.
        rows: from ``data_prep.row_counts``.
        coded: accepted rows.
        known: per item side feature the share of item codes that have a known value.
        ids: from ``data_prep.id_coverage``.
    """
    items = (schema.item.cardinality or 1) - 1
    shared = ids.get(schema.item.name)
    return {
        "version": REPORT_VERSION,
        "name": recipe.name,
        "note": recipe.note,
        "recipe": plain(recipe),
        "schema": schema.fingerprint(),
        "rows": rows,
        "users": (schema.user.cardinality or 1) - 1,
        "items": shared["values"] if shared else items,
        "items_in_log": shared["values_in_log"] if shared else _distinct(coded, schema.item.name),
        "events": coded.events,
        "timestamp_unit": schema.timestamp_unit,
        "side_info_known": {name: share * items / shared["codes_used"] for name, share in known.items()}
        if shared
        else known,
        "ids": ids,
        "split": {
            "way": recipe.split.way,
            "users_disjoint": bool(recipe.split.by_value and recipe.split.by_value.users_disjoint)
            or recipe.split.by_user_fold is not None,
        },
        "samples": {split: describe_split(schema, coded.rows, split) for split in SPLITS},
    }


def plain(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says of the data set, as it stands in JSON."""
    return json.loads(json.dumps({key: value for key, value in asdict(recipe).items() if key not in TEXTUAL}))


def _distinct(coded: Coded, name: str) -> int:
    return int(coded.rows[name].nunique().to_pyarrow().as_py())


def describe_split(schema: Schema, coded: ir.Table, split: str) -> dict[str, Any]:
    """Figures of one split, of rows in codes with ``split`` and ``$history``."""
    rows = coded.filter((coded["split"] == split).coalesce(False))
    train = coded.filter((coded["split"] == "train").coalesce(False))
    user, item, time = rows[schema.user.name], rows[schema.item.name], rows[schema.timestamp.name]
    found = rows.aggregate(
        samples=rows.count(),
        users=user.nunique(),
        items=item.nunique(),
        label_share=rows[schema.label.name].mean(),
        first=time.min(),
        last=time.max(),
        with_own_event=rows["$history"].cast("int64").sum(),
    )
    described = dict(found.to_pyarrow().to_pylist()[0])
    for feature in (schema.user, schema.item):
        unseen = rows.anti_join(train.select(feature.name).distinct(), feature.name)
        described[f"{feature.kind.value}_not_in_train"] = (
            int(unseen.count().to_pyarrow().as_py()) / described["samples"]
        )
    return described


def complete(report: dict[str, Any], found: Findings, folder: Path) -> dict[str, Any]:
    """The report with history lengths, the outcome of the leakage check and disk use."""
    for split in SPLITS:
        report["samples"][split]["history_length"] = quantiles(found.lengths[split])
        report["samples"][split]["history_length_powers"] = by_powers(found.lengths[split])
    report["leakage_check"] = {
        "problems": found.problems,
        "samples_checked": found.samples,
        "histories_read_as_in_training": found.cuts,
    }
    report["disk_bytes"] = {path.name: _bytes(path) for path in sorted(folder.iterdir())}
    return report


def quantiles(counts: np.ndarray) -> dict[str, float]:
    """Mean and quantiles of a length distribution given as counts by length."""
    upto = np.cumsum(counts)
    total = max(int(upto[-1]), 1)
    found = {"mean": float((counts * np.arange(len(counts))).sum() / total)}
    return found | {name: int(np.searchsorted(upto, share * total)) for name, share in QUANTILES.items()}


def by_powers(counts: np.ndarray) -> list[int]:
    """Samples whose length is 0, 1, 2 to 3, 4 to 7 and so on, of counts by length."""
    place = np.ceil(np.log2(np.arange(len(counts)) + 1)).astype(int)
    return [int(count) for count in np.bincount(place, counts)]


def _bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write ``report.json``."""
    path.write_text(json.dumps(report, indent=1) + "\n")
