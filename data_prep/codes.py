"""Raw values -> dense codes: one dictionary per embedding table, or quantile buckets for numbers.

Codes start at 1 in the order of the raw values; 0 is "unknown". Every id of the log and of the item table gets one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from data_prep.engine import Engine
from data_prep.intake import Intake, log_features, table_features
from data_prep.quantiles import quantiles
from data_prep.recipe import Recipe
from data_prep.recipe_features import FeatureMap
from data_prep.row_rules import observed
from data_prep.splits import with_split

RAW = "raw"
CODE = "code"
BLANKS = r"^\s+|\s+$"


@dataclass(frozen=True)
class Codes:
    """How each feature's values become codes."""

    dictionaries: dict[str, ir.Table]
    """Feature -> table of ``raw`` and ``code``; of buckets, ``raw`` is the lower bound."""
    cardinalities: dict[str, int]
    """Feature -> codes including 0."""
    bounds: dict[str, list[float]]
    """Bucketised feature -> rising inner bounds; bucket ``i`` holds values from bound ``i - 1`` on."""

    def encode(self, table: ir.Table, features: Iterable[str]) -> ir.Table:
        """The table with column ``$name`` replaced by the code under ``name``, for each feature."""
        for name in features:
            table = self._encode_one(table, name)
        return table

    def _encode_one(self, table: ir.Table, name: str) -> ir.Table:
        value = f"${name}"
        if name in self.bounds:
            number = table[value].cast("float64")
            buckets = sum(((number >= bound).cast("int64") for bound in self.bounds[name]), ibis.literal(1))
            return table.mutate(**{name: number.isnull().ifelse(0, buckets).cast("int64")}).drop(value)
        dictionary = self.dictionaries[name]
        keyed = dictionary.select(**{f"{value}:raw": dictionary[RAW], f"{value}:code": dictionary[CODE]})
        joined = table.left_join(keyed, table[value] == keyed[f"{value}:raw"])
        coded = joined.mutate(**{name: joined[f"{value}:code"].coalesce(0)})
        return coded.drop(value, f"{value}:raw", f"{value}:code")


def all_features(recipe: Recipe) -> dict[str, FeatureMap]:
    """Every categorical feature by its name in the prepared data set."""
    ids = {recipe.name_of("user"): recipe.user, recipe.name_of("item"): recipe.item}
    return ids | recipe.item_side | recipe.event_side | recipe.context


def list_values(table: ir.Table, name: str, feature: FeatureMap, *keep: str) -> ir.Table:
    """Known values of a feature, one a row under ``raw``; lists are split up. Columns ``keep`` stay beside."""
    value = table[f"${name}"]
    if feature.split is None:
        rows = table.select(*keep, **{RAW: value})
    else:
        split = table.select(*keep, **{RAW: value.cast("string").re_split(re.escape(feature.split)).unnest()})
        # A plain strip names its characters in a way that Spark reads differently.
        rows = split.mutate(**{RAW: split[RAW].re_replace(BLANKS, "").nullif("")})
        if feature.missing:
            rows = rows.filter(rows[RAW].isnull() | ~rows[RAW].isin(feature.missing))
    return rows.filter(rows[RAW].notnull())


def make_codes(engine: Engine, recipe: Recipe, intake: Intake) -> Codes:
    """Build all dictionaries and bounds.

    Raises:
        ValueError: when features share a table but not the type of their values.
    """
    groups: dict[str, list[str]] = {}
    features = all_features(recipe)
    for name, feature in features.items():
        groups.setdefault(feature.table or name, []).append(name)
    codes = Codes({}, {}, {})
    for table, members in groups.items():
        if bucketised := [name for name in members if features[name].buckets]:
            _make_buckets(engine, recipe, intake, codes, members, bucketised[0])
            continue
        sources = [rows for name in members for rows in _sources(recipe, intake, name, features[name])]
        dictionary = _dictionary(engine, table, sources, members)
        size = int(dictionary.count().to_pyarrow().as_py())
        for name in members:
            codes.dictionaries[name], codes.cardinalities[name] = dictionary, size + 1
    return codes


def _sources(recipe: Recipe, intake: Intake, name: str, feature: FeatureMap) -> list[ir.Table]:
    """Where the values of a feature stand."""
    ids = {recipe.name_of("user"): "user", recipe.name_of("item"): "item"}
    if name not in ids:
        table = intake.items if name in table_features(recipe) else intake.accepted
        assert table is not None
        return [list_values(table, name, feature)]
    part = ids[name]
    tables = [intake.accepted] + ([intake.items] if part == "item" and intake.items is not None else [])
    return [list_values(table, part, feature) for table in tables]


def _dictionary(engine: Engine, table: str, sources: list[ir.Table], members: list[str]) -> ir.Table:
    kinds = [rows[RAW].type() for rows in sources]
    if any(kind.is_string() for kind in kinds) != all(kind.is_string() for kind in kinds):
        seen = ", ".join(sorted({str(kind) for kind in kinds}))
        raise ValueError(
            f"table {table!r} ({', '.join(members)}) mixes text and numbers ({seen}); "
            "give their columns one type in `types` or by CAST"
        )
    wanted = reduce(_wider, kinds)
    rows = (
        ibis.union(*(rows.select(**{RAW: rows[RAW].cast(wanted)}) for rows in sources), distinct=True)
        if len(sources) > 1
        else sources[0].distinct()
    )
    return engine.store_ordered(f"dictionary_{table}", rows, [RAW], CODE, 1)


def _wider(first: ibis.expr.datatypes.DataType, second: ibis.expr.datatypes.DataType) -> ibis.expr.datatypes.DataType:
    return ibis.expr.datatypes.highest_precedence([first, second])


def _make_buckets(engine: Engine, recipe: Recipe, intake: Intake, codes: Codes, members: list[str], name: str) -> None:
    """Bounds from the item table, or from training rows, so that they tell nothing of later ones."""
    if len(members) > 1:
        raise ValueError(f"{', '.join(members)} share a table, but {name!r} is bucketised; give it a table of its own")
    if name in table_features(recipe):
        assert intake.items is not None
        rows = intake.items
    elif name in log_features(recipe):
        split = with_split(recipe, observed(intake.accepted))
        rows = split.filter((split["split"] == "train").coalesce(False))
    else:
        raise ValueError(f"{name!r} has `buckets`; user and item ids cannot be bucketised")
    buckets = all_features(recipe)[name].buckets
    assert buckets is not None
    if not rows[f"${name}"].type().is_numeric():
        raise ValueError(f"feature {name!r} has `buckets` but type {rows[f'${name}'].type()}; expected a number")
    value = rows[f"${name}"].cast("float64")
    bounds = sorted(set(quantiles(engine, value, [i / buckets for i in range(1, buckets)])))
    codes.bounds[name] = bounds
    codes.cardinalities[name] = len(bounds) + 2
    lower = {RAW: [float("-inf"), *bounds], CODE: list(range(1, len(bounds) + 2))}
    codes.dictionaries[name] = engine.literal_table(f"dictionary_{name}", pa.table(lower))
