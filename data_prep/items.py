"""Side info of items: one row per item code, row 0 unknown."""

from __future__ import annotations

from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.codes import Codes
from data_prep.engine import Engine
from data_prep.intake import Intake
from data_prep.recipe import Recipe
from data_prep.recipe_features import FeatureMap
from data_prep.row_rules import observed
from data_prep.vocabulary import CODE, RAW, list_values
from laser.schema import Feature, Kind, Schema

COUNT, RANK = "count", "rank"


def write_items(
    path: Path, engine: Engine, recipe: Recipe, schema: Schema, intake: Intake, codes: Codes
) -> dict[str, float]:
    """Write ``items.parquet``; returns per side feature the share of items that have a known value."""
    table = item_rows(engine, recipe, schema, intake, codes, 0)
    pq.write_table(table, path, compression="zstd")
    return known_shares(table, schema)


def item_rows(engine: Engine, recipe: Recipe, schema: Schema, intake: Intake, codes: Codes, first: int) -> pa.Table:
    """Rows of ``items.parquet`` from item code ``first`` on; row 0 is unknown."""
    item = schema.item.name
    size = codes.cardinalities[item]
    columns: dict[str, pa.Array] = {item: pa.array(np.arange(first, size), pa.from_numpy_dtype(schema.item.dtype))}
    for name, feature in recipe.item_side.items():
        pairs = _pairs(recipe, intake, codes, name, feature)
        values = _fill(engine, pairs.filter(pairs["item"] >= first), schema[name], first, size)
        columns[name] = side_column(values, schema[name])
    if item in codes.dictionaries:
        columns[RAW] = _raw(engine, codes.dictionaries[item], first, size)
    return pa.table(columns)


def _raw(engine: Engine, dictionary: ir.Table, first: int, size: int) -> pa.Array:
    """Raw ids of the item codes from ``first`` on; null for code 0 and for codes that several items share."""
    kind = dictionary.schema().to_pyarrow().field(RAW).type
    known = [batch.column(RAW) for batch in engine.batches(dictionary.filter(dictionary[CODE] >= first), [CODE])]
    before = [pa.nulls(1, kind)] if first == 0 else []
    missing = size - first - len(before) - sum(len(part) for part in known)
    return pa.concat_arrays([*before, *known, pa.nulls(missing, kind)])


def known_shares(items: pa.Table, schema: Schema) -> dict[str, float]:
    """Per side feature the share of items, but for row 0, that have a known value."""
    known = {}
    for feature in schema.of_kind(Kind.ITEM_SIDE):
        first = side_values(items, feature)[1:, 0]
        known[feature.name] = float((first > 0).mean()) if len(first) else 0.0
    return known


def side_values(items: pa.Table, feature: Feature) -> np.ndarray:
    """Codes of a side feature, [items, length]."""
    column = items[feature.name]
    values = (pc.call_function("list_flatten", [column]) if feature.length > 1 else column).to_numpy()
    return values.reshape(-1, feature.length)


def _pairs(recipe: Recipe, intake: Intake, codes: Codes, name: str, feature: FeatureMap) -> ir.Table:
    """Rows of ``item`` code, ``code`` and ``rank`` among the item's values, from 0.

    Where several items share a code, they are one item here.
    """
    table = observed(intake.accepted) if feature.from_log else intake.items
    assert table is not None
    rows = list_values(table, name, feature, "$item")
    coded = codes.encode(
        rows.rename({f"${name}": RAW, f"${schema_item(recipe)}": "$item"}), [schema_item(recipe), name]
    )
    pairs = coded.select(item=coded[schema_item(recipe)], code=coded[name])
    pairs = pairs.filter((pairs["item"] > 0) & (pairs[CODE] > 0))
    if feature.from_log:
        counts = pairs.group_by("item", CODE).agg(**{COUNT: pairs.count()})
    else:
        counts = pairs.distinct()
        counts = counts.mutate(**{COUNT: counts.count().over(group_by=counts[CODE])})
    rank = ibis.row_number().over(group_by=counts["item"], order_by=[counts[COUNT].desc(), counts[CODE]])
    ranked = counts.mutate(**{RANK: rank})
    return ranked.filter(ranked[RANK] < feature.length).select("item", CODE, RANK)


def schema_item(recipe: Recipe) -> str:
    """Name of the item feature."""
    return recipe.name_of("item")


def _fill(engine: Engine, pairs: ir.Table, feature: Feature, first: int, size: int) -> np.ndarray:
    values = np.zeros((size - first, feature.length), feature.dtype)
    for batch in engine.batches(pairs):
        item, code, rank = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("item", CODE, RANK))
        values[item - first, rank] = code
    return values


def side_column(values: np.ndarray, feature: Feature) -> pa.Array:
    """Codes of a side feature [items, length] as a column of ``items.parquet``."""
    flat = pa.array(values.reshape(-1))
    return flat if feature.length == 1 else pa.FixedSizeListArray.from_arrays(flat, feature.length)
