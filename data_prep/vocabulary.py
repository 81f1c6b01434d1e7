"""Which raw values of a feature get a code of their own: the dictionaries."""

from __future__ import annotations

import re
from functools import cached_property, reduce

import ibis
import ibis.expr.types as ir

from data_prep.engine import Engine
from data_prep.intake import Intake, table_features
from data_prep.recipe import Recipe
from data_prep.recipe_features import FeatureMap
from data_prep.row_rules import observed
from data_prep.splits import with_split

RAW = "raw"
CODE = "code"
BLANKS = r"^\s+|\s+$"


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


class Vocabulary:
    """Finds the values of features.

    Args:
        engine: that keeps the dictionaries.
        recipe: with the rules.
        intake: rows of the log and of the item table.
    """

    def __init__(self, engine: Engine, recipe: Recipe, intake: Intake) -> None:
        self.engine, self.recipe, self.intake = engine, recipe, intake
        self._features = all_features(recipe)

    @cached_property
    def _training(self) -> ir.Table:
        """Rows that training sees: its samples, and events that lie before a training sample of their user."""
        split = with_split(self.recipe, observed(self.intake.accepted))
        sample = (split["split"] == "train").coalesce(False)
        latest = sample.ifelse(split["$timestamp"], ibis.null("int64")).max().over(group_by=split["$user"])
        seen = split.mutate(**{"$:sample": sample, "$:latest": latest})
        before = (seen["$timestamp"] < seen["$:latest"]).coalesce(False)
        values = {f"${self._part(name)}" for name, f in self._features.items() if f.vocabulary == "train"}
        columns = sorted((values | {"$item"}) & set(seen.columns))
        return self.engine.store("training_rows", seen.filter(seen["$:sample"] | (seen["$history"] & before))[columns])

    def _part(self, name: str) -> str:
        """Name of a feature's column in the intake, without its prefix."""
        ids = {self.recipe.name_of("user"): "user", self.recipe.name_of("item"): "item"}
        return ids.get(name, name)

    def sources(self, name: str, vocabulary: str = "log") -> list[ir.Table]:
        """Tables of ``raw`` with the known values of a feature, each as often as it stands there.

        Args:
            name: of the feature.
            vocabulary: as in a recipe; of values in the item table, ``train`` leaves those of items in training rows.
        """
        feature, items = self._features[name], self.intake.items
        log = self._training if vocabulary == "train" else observed(self.intake.accepted)
        if name in table_features(self.recipe):
            assert items is not None
            if vocabulary == "train":
                items = items.semi_join(log, "$item")
            return [list_values(items, name, feature)]
        part = self._part(name)
        found = [list_values(log, part, feature)]
        # An item that stands in the item table alone has no row that could be counted.
        if part == "item" and items is not None and vocabulary == "log" and feature.min_count == 1:
            found.append(list_values(items, part, feature))
        return found

    def dictionary(self, table: str, members: list[str]) -> tuple[ir.Table, int]:
        """Codes from 1 in the order of the raw values, for the features that share a table; and their number.

        Raises:
            ValueError: when the features' values differ in type, or ``min_count`` leaves none.
        """
        rule = self._features[members[0]]
        sources = [rows for name in members for rows in self.sources(name, rule.vocabulary)]
        rows = together(table, members, sources, distinct=rule.min_count == 1)
        if rule.min_count > 1:
            counts = rows.group_by(RAW).agg(**{"$:rows": rows.count()})
            rows = counts.filter(counts["$:rows"] >= rule.min_count).select(RAW)
        dictionary = self.engine.store_ordered(f"dictionary_{table}", rows, [RAW], CODE, 1)
        size = int(dictionary.count().to_pyarrow().as_py())
        if not size and rule.min_count > 1:
            raise ValueError(f"`min_count: {rule.min_count}` of {members[0]!r} leaves no value with a code; lower it")
        return dictionary, size

    def refuse_unhashable(self, name: str) -> None:
        """Raise ``ValueError`` for values whose text is not the same in every engine and table."""
        for rows in self.sources(name):
            if not ((found := rows[RAW].type()).is_integer() or found.is_string()):
                raise ValueError(
                    f"feature {name!r} is hashed but has type {found}; expected whole numbers or text, "
                    "so convert it by CAST in an expression"
                )


def together(table: str, members: list[str], sources: list[ir.Table], distinct: bool) -> ir.Table:
    """Rows of all sources in one type.

    Raises:
        ValueError: when some are text and some are numbers.
    """
    kinds = [rows[RAW].type() for rows in sources]
    if any(kind.is_string() for kind in kinds) != all(kind.is_string() for kind in kinds):
        seen = ", ".join(sorted({str(kind) for kind in kinds}))
        raise ValueError(
            f"table {table!r} ({', '.join(members)}) mixes text and numbers ({seen}); "
            "give their columns one type in `types` or by CAST"
        )
    wanted = reduce(_wider, kinds)
    if len(sources) == 1:
        return sources[0].distinct() if distinct else sources[0]
    return ibis.union(*(rows.select(**{RAW: rows[RAW].cast(wanted)}) for rows in sources), distinct=distinct)


def _wider(first: ibis.expr.datatypes.DataType, second: ibis.expr.datatypes.DataType) -> ibis.expr.datatypes.DataType:
    return ibis.expr.datatypes.highest_precedence([first, second])
