"""Codes, side info and histories of a data set that grows: what a code means and what was stored stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.codes import Codes
from data_prep.engine import Engine
from data_prep.histories import runs
from data_prep.intake import Intake
from data_prep.items import item_rows, side_column, side_values
from data_prep.layout import UNSIGNED
from data_prep.present import Present
from data_prep.recipe import Recipe
from data_prep.row_columns import LOG_ROW
from data_prep.vocabulary import CODE, RAW, Vocabulary, all_features, together
from data_prep.writing import Coded
from laser.schema import Feature, Kind, Schema, names
from laser.seqvault import SeqVault
from laser.seqvault.layout import Layout

EVENTS_AT_ONCE = 1 << 20
"""Events of whole histories in memory while these are written anew; a longer one is held whole."""


def extend_codes(engine: Engine, recipe: Recipe, intake: Intake, present: Present) -> Codes:
    """The data set's codes, with new ones behind them for values that are new; bounds and hashes stay.

    Raises:
        ValueError: when new values are text and the known ones numbers, or the other way round.
    """
    codes = Codes({}, {}, {}, {})
    vocabulary, features = Vocabulary(engine, recipe, intake), all_features(recipe)
    groups: dict[str, list[str]] = {}
    for name, feature in features.items():
        groups.setdefault(feature.table or name, []).append(name)
    for table, members in groups.items():
        size = present.schema[members[0]].cardinality
        assert size is not None
        codes.cardinalities.update(dict.fromkeys(members, size))
        if (number := features[members[0]].hash) is not None:
            for name in members:
                vocabulary.refuse_unhashable(name)
                codes.shared[name] = (1, number)
            continue
        known = engine.read_parquet([present.folder / "ids" / f"{members[0]}.parquet"], {RAW, CODE}).select(RAW, CODE)
        if features[members[0]].buckets:
            lower = known.order_by(CODE).to_pyarrow()[RAW].to_pylist()
            codes.bounds[members[0]] = [float(bound) for bound in lower[1:]]
        else:
            known, size = _longer(engine, vocabulary, table, members, known, size)
        codes.dictionaries.update(dict.fromkeys(members, known))
        codes.cardinalities.update(dict.fromkeys(members, size))
    return codes


def _longer(
    engine: Engine, vocabulary: Vocabulary, table: str, members: list[str], known: ir.Table, size: int
) -> tuple[ir.Table, int]:
    """A dictionary with the values that it lacked behind those that it has; and the number of codes with 0."""
    sources = [rows for name in members for rows in vocabulary.sources(name)]
    values = together(table, members, [known.select(RAW), *sources], distinct=True)
    old = known.select(**{RAW: known[RAW].cast(values[RAW].type()), CODE: known[CODE].cast("int64")})
    new = engine.store_ordered(f"new_in_{table}", values.anti_join(old, RAW), [RAW], CODE, size)
    added = int(new.count().to_pyarrow().as_py())
    return engine.store(f"dictionary_{table}", ibis.union(old, new.select(RAW, CODE))), size + added


def extend_schema(schema: Schema, codes: Codes) -> Schema:
    """The schema with the new cardinalities; a stored type grows where it no longer holds all codes."""
    return replace(schema, features=tuple(_grown(feature, codes) for feature in schema.features))


def _grown(feature: Feature, codes: Codes) -> Feature:
    if feature.name not in codes.cardinalities:
        return feature
    size = codes.cardinalities[feature.name]
    if size <= np.iinfo(feature.dtype).max + 1:
        return replace(feature, cardinality=size)
    return replace(feature, cardinality=size, dtype=next(dtype for dtype, limit in UNSIGNED if size <= limit))


def extend_items(
    path: Path, engine: Engine, recipe: Recipe, schema: Schema, intake: Intake, codes: Codes, present: Present
) -> pa.Table:
    """Write the item table with rows for new items behind the known ones, whose side info stays; returns it.

    The code of a hashed item had its row before: it is filled in when nothing was known for it.
    """
    known = pq.read_table(present.folder / path.name)
    table = known
    if (schema.item.cardinality or 0) > len(known):
        fresh = item_rows(engine, recipe, schema, intake, codes, len(known))
        table = pa.concat_tables([known, fresh], promote_options="permissive")
    elif schema.item.name in codes.shared and schema.of_kind(Kind.ITEM_SIDE):
        table = _filled(known, item_rows(engine, recipe, schema, intake, codes, 0), schema)
    pq.write_table(table, path, compression="zstd")
    return table


def _filled(known: pa.Table, fresh: pa.Table, schema: Schema) -> pa.Table:
    """The known side info, and the fresh one where every feature of a row is unknown."""
    side = schema.of_kind(Kind.ITEM_SIDE)
    before = {feature.name: side_values(known, feature) for feature in side}
    blank = np.all([values[:, 0] == 0 for values in before.values()], axis=0)
    for feature in side:
        values = before[feature.name].astype(feature.dtype)
        values[blank] = side_values(fresh, feature)[blank]
        known = known.set_column(known.column_names.index(feature.name), feature.name, side_column(values, feature))
    return known


def extend_vault(
    path: Path, engine: Engine, schema: Schema, coded: Coded, memory_bytes: int, advance: Callable[[int], None]
) -> None:
    """Append the new events in one commit; ``advance`` is told each of them twice."""
    _widen(path, schema)
    events = coded.rows.filter(coded.rows["$history"])
    columns = [schema.user.name, *names(schema.event), LOG_ROW]
    # Nothing may be rewritten in the background: the segments are those of the data set as it was.
    with SeqVault.open(path, "a", maintenance_rate=0) as vault:
        batches = engine.batches(events.select(*columns), [schema.timestamp.name, LOG_ROW])
        vault.load(batches, user=schema.user.name, memory_bytes=memory_bytes, progress=advance)


def _widen(path: Path, schema: Schema) -> None:
    """Write the histories anew when an event field has outgrown its stored type."""
    with SeqVault.open(path) as old:
        if old.layout.fields == Layout.of(schema).fields:
            return
        fresh = path.with_name("vault.wider")
        with SeqVault.create(fresh, schema) as new:
            users = old.users()
            for run in runs(old.lengths(users), EVENTS_AT_ONCE):
                some = users[run]
                found = old.read(some)
                events = {field.name: found[field.name].astype(field.dtype) for field in schema.event}
                new.append(np.repeat(some, found.lengths), events)
            new.compact()
    old_path = path.rename(path.with_name("vault.narrow"))
    fresh.rename(path)
    for file in old_path.iterdir():
        file.unlink()
    old_path.rmdir()
