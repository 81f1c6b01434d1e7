"""The log and the item table as the recipe sees them: evaluated values, and a reason for each row that is unfit.

Evaluated columns bear the prefix ``$``, so that they cannot collide with the log's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from data_prep.engine import Engine
from data_prep.expressions import add_columns, columns_of, sql_of
from data_prep.joins import look_up, one_per_key, refuse_unfit
from data_prep.merging import read_logs
from data_prep.recipe import Recipe
from data_prep.recipe_features import FeatureMap
from data_prep.recipe_sources import Timestamp, Value
from data_prep.row_columns import CELL, LOG_FIRST, UNPARSED
from data_prep.row_rules import follow_rules
from data_prep.sampling import with_negatives
from data_prep.sources import read_source
from data_prep.timestamps import with_ticks
from laser.schema import TIMESTAMP_UNITS

YEAR_10000 = 253_402_300_800
"""Seconds from 1970 to the first moment that calendars of Python and SQL do not know."""
REASON = "$:reason"
LOG_VALUES = "log_values"
ACCEPTED = "accepted"


@dataclass(frozen=True)
class Intake:
    """Tables of the engine after reading."""

    log: ir.Table
    """All rows: source columns, ``log_row``, ``$user``, ``$item``, ``$timestamp``, ``$label``, one ``$name`` per other
    feature, and ``REASON``, null for rows that are fit."""
    accepted: ir.Table
    """Fit rows that the recipe's rules leave, with ``$target`` and ``$history`` (may it become a sample, an event),
    ``$split`` if by value, and, if the recipe draws some, negatives, told apart by ``$negative``."""
    items: ir.Table | None
    """Item table: ``$item`` and one ``$name`` per feature."""
    removed: dict[str, int]
    """Rule that takes rows out -> how many fit rows it took."""


def log_features(recipe: Recipe) -> dict[str, FeatureMap]:
    """Features whose values stand in the log, besides user and item."""
    from_log = {name: feature for name, feature in recipe.item_side.items() if feature.from_log}
    return from_log | recipe.event_side | recipe.context


def table_features(recipe: Recipe) -> dict[str, FeatureMap]:
    """Features whose values stand in the item table."""
    return {name: feature for name, feature in recipe.item_side.items() if not feature.from_log}


def read_log(engine: Engine, recipe: Recipe, raw: Path) -> ir.Table:
    """Read and evaluate the log into the engine's own table.

    Raises:
        ValueError: on files, columns, expressions or types that do not fit the recipe.
    """
    values: dict[str, Value] = {
        "$user": recipe.user,
        "$item": recipe.item,
        "$label": recipe.label,
    }
    ids = {"$session": recipe.session, "$request": recipe.request}
    values |= {name: value for name, value in ids.items() if value is not None}
    values |= {f"${name}": feature for name, feature in log_features(recipe).items()}
    table = read_logs(engine, recipe.log, raw, _log_columns(recipe, values))
    table = with_ticks(table, recipe.timestamp, "$timestamp")
    for name, join in recipe.joins.items():
        table = look_up(engine, name, join, raw, table)
    table = add_columns(table, {name: sql_of(value) for name, value in values.items()})
    _check_types(table)
    table = _with_missing(table, {f"${name}": feature for name, feature in log_features(recipe).items()})
    return engine.store(LOG_VALUES, table.mutate(**{REASON: _reason(table, recipe.timestamp)}))


def _log_columns(recipe: Recipe, values: dict[str, Value]) -> set[str]:
    """Columns that the logs must have: all that the recipe reads but what `joins` bring."""
    used = _used(values, f"recipe {recipe.name}")
    for place, rows in (("target", recipe.target), ("history", recipe.history)):
        used |= columns_of(rows.where, f"{place}.where") if rows.where else set()
    if recipe.split.by_value:
        used |= columns_of(sql_of(recipe.split.by_value), "split.by_value")
    brought: set[str] = set()
    for name, join in recipe.joins.items():
        used |= columns_of(sql_of(join.on), f"joins.{name}.on") - brought
        brought |= set(join.values)
    return (used - brought) | columns_of(sql_of(recipe.timestamp), "timestamp")


def accept(engine: Engine, recipe: Recipe, log: ir.Table) -> tuple[ir.Table, dict[str, int]]:
    """Fit rows with the conditions of the recipe evaluated among them, and how many each of its rules took out."""
    ids = {name: log[name].cast("int64") for name in ("$user", "$item") if log[name].type().is_floating()}
    fit = log.filter(log[REASON].isnull()).mutate(
        **ids, **{"$timestamp": log["$timestamp"].cast("int64"), "$label": log["$label"].cast("int8")}
    )
    conditions = {"$target": recipe.target.where or "true", "$history": recipe.history.where or "true"}
    if recipe.split.by_value:
        conditions["$split"] = sql_of(recipe.split.by_value)
    spent = [name for name in (UNPARSED, CELL, LOG_FIRST, REASON) if name in fit.columns]
    flagged = add_columns(fit.drop(*spent), conditions)
    flags = {name: flagged[name].cast("boolean").coalesce(False) for name in ("$target", "$history")}
    rows, removed = follow_rules(engine, recipe, flagged.mutate(**flags))
    if recipe.negatives is not None:
        rows = with_negatives(engine, recipe.negatives, rows)
    return engine.store(ACCEPTED, rows), removed


def read_items(engine: Engine, recipe: Recipe, raw: Path) -> ir.Table | None:
    """Read and evaluate the item table; None when the recipe has none.

    Raises:
        ValueError: also when a cell does not parse or an item stands there twice.
    """
    if recipe.item_table is None:
        return None
    features = table_features(recipe)
    values: dict[str, Value] = {"$item": recipe.item_table.key} | {
        f"${name}": feature for name, feature in features.items()
    }
    table = read_source(engine, recipe.item_table.source, raw, _used(values, "item_table"), "the item table")
    evaluated = add_columns(table, {name: sql_of(value) for name, value in values.items()})
    stored = engine.store("item_values", evaluated)
    source = recipe.item_table.source
    refuse_unfit(stored, ["$item"], source, raw, "the item table")
    unique = one_per_key(stored, ["$item"], recipe.item_table.keep, "the item table")
    return _with_missing(unique, {f"${name}": feature for name, feature in features.items()})


def _used(values: dict[str, Value], where: str) -> set[str]:
    return set().union(
        *(columns_of(sql_of(value), f"{where}, {name.removeprefix('$')}") for name, value in values.items())
    )


def _with_missing(table: ir.Table, features: dict[str, FeatureMap]) -> ir.Table:
    changes = {}
    for name, feature in features.items():
        value = table[name]
        if value.type().is_floating():  # an expression may divide by zero
            value = value.isnan().ifelse(ibis.null(), value)
        if feature.missing and feature.split is None:
            value = value.cast("string").isin(feature.missing).ifelse(ibis.null(), value)
        changes[name] = value
    return table.mutate(**changes) if changes else table


def _check_types(table: ir.Table) -> None:
    """Refuse columns whose type is wrong as a whole, before any row is judged."""
    if not (found := table["$timestamp"].type()).is_numeric():
        example = table.select("$timestamp").limit(1).to_pyarrow()["$timestamp"].to_pylist()
        seen = f" such as {str(example[0])!r}" if example else ""
        raise ValueError(
            f"the timestamp has type {found}{seen}; expected whole numbers, dates or times, so give the `format` of a "
            "text such as '%Y-%m-%d %H:%M:%S', or convert it by an expression"
        )
    if not ((found := table["$label"].type()).is_numeric() or found.is_boolean()):
        raise ValueError(f"the label has type {found}; expected 0 and 1 or a condition such as rating >= 4")
    for name in ("$user", "$item"):
        if not isinstance(found := table[name].type(), (dt.Integer, dt.Floating, dt.String)):
            raise ValueError(f"the {name.removeprefix('$')} id has type {found}; expected whole numbers or text")


def _reason(table: ir.Table, clock: Timestamp) -> ir.StringValue:
    """First fault of a row in words, or null."""
    faults: list[tuple[ir.BooleanValue, str]] = []
    for part in ("user", "item"):
        faults += _id_faults(table[f"${part}"], part)
    time = table["$timestamp"]
    faults.append((_missing(time), "timestamp is missing"))
    if not time.type().is_integer():
        faults.append((time.cast("float64") != time.cast("float64").floor(), "timestamp is not a whole number"))
    faults.append(((time < 0) | (time.cast("float64") >= 2.0**63), "timestamp is negative or above 2^63"))
    if clock.unit != "step":
        end = round(YEAR_10000 / TIMESTAMP_UNITS[clock.unit])
        faults.append((time >= end, f"timestamp is after the year 9999, so its unit is not {clock.unit!r}"))
    if clock.earliest is not None:
        faults.append((time < clock.earliest, f"timestamp is before `earliest`, {clock.earliest}"))
    if clock.latest is not None:
        faults.append((time > clock.latest, f"timestamp is after `latest`, {clock.latest}"))
    label = table["$label"]
    faults.append((_missing(label), "label is missing"))
    if not label.type().is_boolean():
        faults.append((~label.isin([0, 1]), "label is not 0 or 1"))
    cases = [(fault.coalesce(False), ibis.literal(reason)) for fault, reason in faults]
    return table[UNPARSED].coalesce(ibis.cases(*cases, else_=ibis.null("string")))


def _id_faults(value: ir.Column, part: str) -> list[tuple[ir.BooleanValue, str]]:
    faults = [(_missing(value), f"{part} id is missing")]
    if value.type().is_numeric():
        faults.append((value < 0, f"{part} id is negative"))
    if value.type().is_floating():
        faults.append((value != value.floor(), f"{part} id is not a whole number"))
    return faults


def _missing(value: ir.Column) -> ir.BooleanValue:
    if value.type().is_floating():
        return value.isnull() | value.isnan()
    return value.isnull()
