"""What hashing, minimum counts and vocabularies leave of the ids: for the report."""

from __future__ import annotations

from typing import Any

import ibis
import ibis.expr.types as ir

from data_prep.codes import Codes
from data_prep.engine import Engine
from data_prep.intake import Intake, table_features
from data_prep.recipe import SPLITS, Recipe
from data_prep.vocabulary import RAW, Vocabulary, all_features

WAYS = ("own", "shared", "unknown")
"""A code that stands for one value, a code that hashed values share, and code 0."""


def id_coverage(
    engine: Engine, recipe: Recipe, intake: Intake, codes: Codes, coded: ir.Table
) -> dict[str, dict[str, Any]]:
    """Figures of each feature whose values share codes or have none.

    Args:
        engine: of the tables.
        recipe: with the rules.
        intake: raw values.
        codes: made of them.
        coded: rows in codes, with ``split``.

    Returns:
        Feature -> its keys of the recipe; ``values`` (distinct raw ones in log and item table); of these ``own`` (with
        a code of their own), ``shared`` (in codes by hash) and ``unknown`` (code 0); ``codes_used``, but for 0; and,
        for a feature of the log, ``samples``: split -> share of its samples in each of these ways; for the item also
        ``values_in_log``.
    """
    vocabulary = Vocabulary(engine, recipe, intake)
    found = {}
    for name, feature in all_features(recipe).items():
        if not feature.id_rule:
            continue
        sources = [rows.distinct() for rows in vocabulary.sources(name)]
        values = ibis.union(*sources, distinct=True) if len(sources) > 1 else sources[0]
        encoded = codes.encode(values.select(**{f"${name}": values[RAW]}), [name])
        code = encoded[name]
        counts = encoded.aggregate(
            values=encoded.count(),
            **{way: part.cast("int64").sum() for way, part in _ways(code, codes.own(name)).items()},
            codes_used=code.nullif(0).nunique(),
        )
        found[name] = feature.id_rule | counts.to_pyarrow().to_pylist()[0]
        if name in coded.columns and name not in table_features(recipe):
            found[name]["samples"] = _of_samples(coded, name, codes.own(name))
        if name == recipe.name_of("item"):
            found[name]["values_in_log"] = int(intake.accepted["$item"].nunique().to_pyarrow().as_py())
    return found


def _ways(code: ir.IntegerColumn, own: int) -> dict[str, ir.BooleanColumn]:
    return dict(zip(WAYS, ((code > 0) & (code <= own), code > own, code == 0), strict=True))


def _of_samples(coded: ir.Table, name: str, own: int) -> dict[str, dict[str, float]]:
    shares = {way: part.cast("float64").mean() for way, part in _ways(coded[name], own).items()}
    found = coded.filter(coded["split"].notnull()).group_by("split").agg(**shares).to_pyarrow().to_pylist()
    by_split = {row.pop("split"): row for row in found}
    return {split: by_split[split] for split in SPLITS}
