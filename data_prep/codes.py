"""Raw values -> codes: by a dictionary per embedding table, by a hash, or by quantile buckets of numbers.

Dictionary codes start at 1 in the order of the raw values; 0 is "unknown". Every id of the log and of the item table
gets one, unless its feature says otherwise (``min_count``, ``vocabulary``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from data_prep.engine import Engine
from data_prep.hashing import hash_number
from data_prep.intake import Intake, log_features, table_features
from data_prep.quantiles import quantiles
from data_prep.recipe import Recipe
from data_prep.recipe_features import FeatureMap
from data_prep.row_rules import observed
from data_prep.splits import with_split
from data_prep.vocabulary import CODE, RAW, Vocabulary, all_features


@dataclass(frozen=True)
class Codes:
    """How each feature's values become codes."""

    dictionaries: dict[str, ir.Table]
    """Feature -> table of ``raw`` and ``code``; of buckets, ``raw`` is the lower bound. None of a hashed feature."""
    cardinalities: dict[str, int]
    """Feature -> codes including 0."""
    bounds: dict[str, list[float]]
    """Bucketised feature -> rising inner bounds; bucket ``i`` holds values from bound ``i - 1`` on."""
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Feature -> first code and number of the codes over which values without one of their own are spread by hash."""

    def own(self, name: str) -> int:
        """Values of a feature that have a code of their own; these are the codes from 1 on."""
        return self.shared[name][0] - 1 if name in self.shared else self.cardinalities[name] - 1

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
        if name not in self.dictionaries:
            return table.mutate(**{name: self._spread(name, table[value])}).drop(value)
        dictionary = self.dictionaries[name]
        keyed = dictionary.select(**{f"{value}:raw": dictionary[RAW], f"{value}:code": dictionary[CODE]})
        joined = table.left_join(keyed, table[value] == keyed[f"{value}:raw"])
        rest = self._spread(name, joined[value]) if name in self.shared else ibis.literal(0)
        coded = joined.mutate(**{name: joined[f"{value}:code"].coalesce(rest)})
        return coded.drop(value, f"{value}:raw", f"{value}:code")

    def _spread(self, name: str, value: ir.Column) -> ir.IntegerColumn:
        first, number = self.shared[name]
        return (hash_number(value) % number + first).cast("int64").coalesce(0)


def make_codes(engine: Engine, recipe: Recipe, intake: Intake) -> Codes:
    """Build all dictionaries and bounds.

    Raises:
        ValueError: when features share a table but not the type of their values or the way to code them.
    """
    groups: dict[str, list[str]] = {}
    features = all_features(recipe)
    for name, feature in features.items():
        groups.setdefault(feature.table or name, []).append(name)
    codes = Codes({}, {}, {})
    vocabulary = Vocabulary(engine, recipe, intake)
    for table, members in groups.items():
        if bucketised := [name for name in members if features[name].buckets]:
            _make_buckets(engine, recipe, intake, codes, members, bucketised[0])
            continue
        rule = features[members[0]]
        if other := [name for name in members if features[name].id_rule != rule.id_rule]:
            rules = [features[name].id_rule or "none" for name in (members[0], other[0])]
            raise ValueError(
                f"{members[0]!r} and {other[0]!r} share table {table!r}, but their keys for ids differ "
                f"({rules[0]} and {rules[1]}); give both the same"
            )
        _make_group(vocabulary, codes, table, members, rule)
    return codes


def _make_group(vocabulary: Vocabulary, codes: Codes, table: str, members: list[str], rule: FeatureMap) -> None:
    """Codes of features that share a table."""
    number = rule.hash or rule.oov_buckets or 0
    if number:
        for name in members:
            vocabulary.refuse_unhashable(name)
    size = 0
    if rule.hash is None:
        dictionary, size = vocabulary.dictionary(table, members)
        codes.dictionaries.update(dict.fromkeys(members, dictionary))
    for name in members:
        codes.cardinalities[name] = 1 + size + number
        if number:
            codes.shared[name] = (1 + size, number)


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
