"""The only place where a field's name, dtype, kind or cardinality lives.

A schema is written once by data preparation as ``schema.json`` and read by every other room: the history store takes
its event fields from it, the loader its column names, the model its embedding tables.

Ids are dense codes. Code 0 of a categorical feature means "unknown" (never seen, or missing); in a feature with
``length`` > 1 it also pads. Known values are 1 ... cardinality - 1.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
TIMESTAMP_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "step": 60.0}
"""Seconds per tick. ``step`` is for logs that are ordered but not timed: one position counts as a minute."""

NO_TABLE_NAMES = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches
    eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys
    load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module
    register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state
    set_submodule share_memory state_dict to to_empty train training type update values xpu zero_grad
    """.split()  # noqa: SIM905
)
"""Attributes of PyTorch's dictionaries of modules, in which TorchRec keeps tables by their names."""

INTEGER_DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
FLOAT_DTYPES = ("float32", "float64")


class Kind(StrEnum):
    """What a feature describes, and so where it is stored and joined."""

    USER = "user"
    """Whose history it is. One per schema; embedded only if it names a table."""
    ITEM = "item"
    """The thing shown: the target of a sample and the subject of each history event. One per schema."""
    ITEM_SIDE = "item_side"
    """A property of the item, kept once per item in ``items.parquet`` and joined to target and history."""
    EVENT_SIDE = "event_side"
    """A property of one history event (rating, action, watch time), stored with it; never known for the target."""
    CONTEXT = "context"
    """A property of the request or user known when the sample is scored."""
    LABEL = "label"
    """0 or 1. One per schema."""
    TIMESTAMP = "timestamp"
    """When the event or impression took place, in the schema's ``timestamp_unit``. One per schema."""


ONCE = (Kind.USER, Kind.ITEM, Kind.LABEL, Kind.TIMESTAMP)


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One field.

    Args:
        name: column name in every file and key in every dictionary of arrays.
        kind: what it describes.
        dtype: numpy name of the stored type.
        cardinality: number of ids including 0; ``None`` for what is not categorical (label, timestamp).
        table: embedding table that the ids look up; several features may share one. ``None``: not embedded.
        width: embedding width of that table.
        length: values per row; above 1 the row is a list padded with 0, and its embeddings are averaged.

    Raises:
        ValueError: when the fields contradict each other.
    """

    name: str
    kind: Kind
    dtype: str
    cardinality: int | None = None
    table: str | None = None
    width: int | None = None
    length: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", Kind(self.kind))
        if not self.name.isidentifier():
            raise ValueError(f"feature name {self.name!r} is not an identifier; use letters, digits and underscores")
        if self.dtype not in INTEGER_DTYPES + FLOAT_DTYPES:
            raise ValueError(f"feature {self.name!r} has dtype {self.dtype!r}; expected one of {INTEGER_DTYPES}")
        if self.table is not None and (self.cardinality is None or self.width is None):
            raise ValueError(f"feature {self.name!r} looks up table {self.table!r}: set its cardinality and width")
        if self.table in NO_TABLE_NAMES:
            raise ValueError(no_table_name(self.name, self.table))
        if self.length < 1 or (self.cardinality is not None and self.cardinality < 1):
            sizes = f"length {self.length} and cardinality {self.cardinality}"
            raise ValueError(f"feature {self.name!r} has {sizes}; both must be at least 1")


def no_table_name(feature: str, table: str) -> str:
    """What to say of a table with one of ``NO_TABLE_NAMES``."""
    return f"feature {feature!r} looks up table {table!r}, a name that PyTorch uses; set its `table` to another name"


@dataclass(frozen=True)
class Table:
    """An embedding table: ``rows`` x ``width``, looked up by ``features``."""

    name: str
    rows: int
    width: int
    features: tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """The features of a prepared data set.

    Args:
        name: of the data set.
        features: all fields, in any order; exactly one user, item, label and timestamp.
        timestamp_unit: tick of every timestamp, a key of ``TIMESTAMP_UNITS``.

    Raises:
        ValueError: on a missing, repeated or contradicting feature.
    """

    name: str
    features: tuple[Feature, ...]
    timestamp_unit: str = "s"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        names = [f.name for f in self.features]
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"schema {self.name!r} names {', '.join(repeated)} more than once")
        for kind in ONCE:
            if (found := len(self.of_kind(kind))) != 1:
                raise ValueError(f"schema {self.name!r} has {found} features of kind {kind.value!r}; expected 1")
        if self.timestamp_unit not in TIMESTAMP_UNITS:
            raise ValueError(f"timestamp_unit is {self.timestamp_unit!r}; expected one of {', '.join(TIMESTAMP_UNITS)}")
        assert self.tables is not None  # evaluates the checks on shared tables

    def of_kind(self, *kinds: Kind) -> tuple[Feature, ...]:
        """Features of the given kinds, in schema order."""
        return tuple(f for f in self.features if f.kind in kinds)

    def __getitem__(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        known = ", ".join(f.name for f in self.features)
        raise ValueError(f"no feature {name!r} in schema {self.name!r}; it has {known}")

    @property
    def user(self) -> Feature:
        """The user id."""
        return self.of_kind(Kind.USER)[0]

    @property
    def item(self) -> Feature:
        """The item id."""
        return self.of_kind(Kind.ITEM)[0]

    @property
    def label(self) -> Feature:
        """The label."""
        return self.of_kind(Kind.LABEL)[0]

    @property
    def timestamp(self) -> Feature:
        """The timestamp."""
        return self.of_kind(Kind.TIMESTAMP)[0]

    @property
    def event(self) -> tuple[Feature, ...]:
        """What the history store keeps of one event: timestamp, item and event side info, in this order."""
        return self.of_kind(Kind.TIMESTAMP) + self.of_kind(Kind.ITEM) + self.of_kind(Kind.EVENT_SIDE)

    @property
    def history(self) -> tuple[Feature, ...]:
        """Categorical fields of a history event as the model sees it: item, item side info, event side info."""
        return self.of_kind(Kind.ITEM) + self.of_kind(Kind.ITEM_SIDE) + self.of_kind(Kind.EVENT_SIDE)

    @property
    def target(self) -> tuple[Feature, ...]:
        """Categorical fields of the target item: item and item side info."""
        return self.of_kind(Kind.ITEM) + self.of_kind(Kind.ITEM_SIDE)

    @property
    def context(self) -> tuple[Feature, ...]:
        """Categorical fields of the request: the user id if it is embedded, and the context fields."""
        return tuple(f for f in self.of_kind(Kind.USER) if f.table) + self.of_kind(Kind.CONTEXT)

    @property
    def seconds_per_tick(self) -> float:
        """Seconds in one tick of a timestamp."""
        return TIMESTAMP_UNITS[self.timestamp_unit]

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Embedding tables by name; features that share one must agree on its size."""
        found: dict[str, Table] = {}
        for f in self.features:
            if f.table is None:
                continue
            assert f.cardinality is not None
            assert f.width is not None
            known = found.get(f.table, Table(f.table, f.cardinality, f.width, ()))
            if (known.rows, known.width) != (f.cardinality, f.width):
                raise ValueError(
                    f"feature {f.name!r} wants table {f.table!r} as {f.cardinality} x {f.width}, but "
                    f"{known.features[0]!r} has it as {known.rows} x {known.width}; "
                    "give both the same cardinality and width"
                )
            found[f.table] = Table(f.table, f.cardinality, f.width, (*known.features, f.name))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the format's version."""
        features = [{k: v for k, v in asdict(f).items() if v is not None} for f in self.features]
        return {
            "version": SCHEMA_VERSION,
            "name": self.name,
            "timestamp_unit": self.timestamp_unit,
            "features": features,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "schema") -> Schema:
        """Inverse of ``to_dict``.

        Raises:
            ValueError: when the version differs or a key is missing or unknown; the message names ``where``.
        """
        if (version := data.get("version")) != SCHEMA_VERSION:
            raise ValueError(
                f"{where} has schema version {version}, this release reads version {SCHEMA_VERSION}; "
                "prepare the data set again with laser-prep"
            )
        try:
            features = tuple(Feature(**f) for f in data["features"])
            return cls(data["name"], features, data["timestamp_unit"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{where} is not a schema: {error}") from error

    def save(self, path: Path | str) -> None:
        """Write ``schema.json`` atomically (temporary file, fsync, rename)."""
        temporary = Path(f"{path}.tmp")
        with temporary.open("w") as file:
            json.dump(self.to_dict(), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path | str) -> Schema:
        """Read a ``schema.json``.

        Raises:
            ValueError: when the file is missing, not JSON, or of another version.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text()), str(path))
        except FileNotFoundError:
            raise ValueError(f"no schema at {path}; give the folder that laser-prep wrote") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}); prepare the data set again with laser-prep") from None

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when anything in the schema does."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def names(features: Iterable[Feature]) -> list[str]:
    """Names of features, in order."""
    return [f.name for f in features]
