"""The schema of a prepared data set, from a recipe and the sizes of its dictionaries."""

from __future__ import annotations

from data_prep.codes import Codes
from data_prep.recipe import Recipe
from data_prep.recipe_features import FeatureMap
from laser.schema import Feature, Kind, Schema

UNSIGNED = (("uint8", 2**8), ("uint16", 2**16), ("uint32", 2**32))


def make_schema(recipe: Recipe, codes: Codes) -> Schema:
    """Features in the order user, item, item side, event side, context, label, timestamp.

    Raises:
        ValueError: when features that share a table disagree on its width.
    """
    groups = (
        (Kind.USER, {recipe.name_of("user"): recipe.user}),
        (Kind.ITEM, {recipe.name_of("item"): recipe.item}),
        (Kind.ITEM_SIDE, recipe.item_side),
        (Kind.EVENT_SIDE, recipe.event_side),
        (Kind.CONTEXT, recipe.context),
    )
    features = [_feature(name, kind, feature, codes) for kind, group in groups for name, feature in group.items()]
    features.append(Feature(name=recipe.name_of("label"), kind=Kind.LABEL, dtype="uint8"))
    features.append(Feature(name=recipe.name_of("timestamp"), kind=Kind.TIMESTAMP, dtype="int64"))
    return Schema(recipe.name, tuple(features), recipe.timestamp.unit)


def _feature(name: str, kind: Kind, feature: FeatureMap, codes: Codes) -> Feature:
    cardinality = codes.cardinalities[name]
    return Feature(
        name=name,
        kind=kind,
        dtype=next(dtype for dtype, limit in UNSIGNED if cardinality <= limit),
        cardinality=cardinality,
        table=(feature.table or name) if feature.width else None,
        width=feature.width,
        length=feature.length,
    )
