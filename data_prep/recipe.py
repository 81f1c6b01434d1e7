"""The recipe of a data set: which files there are and how their columns become features.

A recipe is a YAML file (``conf/prep/*.yaml``) that ``data_prep.recipe_file`` reads into the dataclasses below.
Wherever a value comes from a column, ``expression`` may stand instead of ``column``: SQL in DuckDB's dialect over the
source's columns, translated to the engine in use.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from laser.schema import TIMESTAMP_UNITS

SPLITS = ("train", "val", "test")
RESERVED = ("user", "item", "timestamp", "label", "target", "history", "split", "row", "raw", "place", "log_row")
"""Names with a meaning of their own, in any case of letters."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One table spread over one or more files of the same layout."""

    files: list[str]
    """Paths or globs below the raw folder; a single string is a list of one. Files are read in sorted order."""
    format: Literal["auto", "parquet", "csv", "tsv"] = "auto"
    """``auto`` goes by the suffix of the first file: .parquet, .tsv, anything else CSV. Text may be compressed."""
    types: dict[str, str] = field(default_factory=dict)
    """Type of each text column that the recipe uses: string, int64, float64. Required for CSV and TSV, where a cell
    that does not parse rejects its row; not for Parquet, which knows its types."""
    delimiter: str | None = None
    """Between text columns, up to four characters; default comma, or tab for TSV."""
    quote: str = '"'
    """Quote character of text files; an empty string when quotes have no meaning."""
    columns: list[str] | None = None
    """Column names of text files without a header row."""
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"
    """Of text files."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value of each row: a column as it stands, or an expression over columns."""

    column: str | None = None
    """Name of the column."""
    expression: str | None = None
    """SQL expression over the source's columns, for example ``rating >= 4``."""

    def __post_init__(self) -> None:
        if (self.column is None) == (self.expression is None):
            raise ValueError("needs either `column` or `expression`, and not both")


@dataclass(frozen=True, kw_only=True)
class Timestamp(Value):
    """When the row took place, as whole ticks."""

    unit: Literal["s", "ms", "us", "step"] = "s"
    """Length of a tick; ``step`` for logs that are ordered but not timed."""


@dataclass(frozen=True, kw_only=True)
class FeatureMap(Value):
    """A categorical feature and how its raw values become codes."""

    table: str | None = None
    """Embedding table and id dictionary; features with the same table share both. Default: the feature's name."""
    width: int | None = None
    """Embedding width; without it the feature is stored and not embedded."""
    split: str | None = None
    """Separator of a text that lists several values, such as ``|`` in ``Comedy|Drama``."""
    length: int = 1
    """Values kept per row, the most frequent in the log or table first; above 1 the row is a list padded with 0."""
    missing: list[str] = field(default_factory=list)
    """Raw values, written as text, that mean "unknown" and get code 0."""
    buckets: int | None = None
    """Turn a number into this many ids by quantiles (of training rows, or of the item table)."""
    from_log: bool = False
    """Item side info only: the value stands in the log, not in the item table. Each item gets its most frequent
    values over the whole log, so use it only for what is fixed per item, never for anything that users caused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ValueError(f"`length` is {self.length}; expected at least 1")
        if self.split == "":
            raise ValueError("`split` is empty; give the separator")
        if self.width is not None and self.width < 1:
            raise ValueError(f"`width` is {self.width}; expected at least 1")
        if self.buckets is not None and (self.buckets < 2 or self.split is not None):
            raise ValueError("`buckets` needs a number of at least 2 and a single-valued feature")


@dataclass(frozen=True, kw_only=True)
class ItemTable:
    """Side info of items: one row per item."""

    source: Source
    """Files of the table."""
    key: Value
    """The item id; the same values as in the log."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows of the log play a part."""

    where: str | None = None
    """SQL condition over the log's columns and ``log_row``, evaluated on accepted rows; windows are allowed."""


@dataclass(frozen=True, kw_only=True)
class PerUser:
    """Each user's last samples by (timestamp, log row): shares rounded down."""

    validation: float
    """Share of a user's samples before the test share."""
    test: float
    """Share of a user's samples at the end."""

    def __post_init__(self) -> None:
        if not (0 < self.validation < 1 and 0 < self.test < 1 and self.validation + self.test < 1):
            raise ValueError(
                f"shares validation {self.validation} and test {self.test} must lie in (0, 1) with a sum below 1"
            )


@dataclass(frozen=True, kw_only=True)
class ByValue(Value):
    """Split named by a value of the row, such as a fold of users."""

    train: list[str]
    """Values, written as text, of training rows."""
    validation: list[str]
    """Values of validation rows."""
    test: list[str]
    """Values of test rows."""
    users_disjoint: bool = True
    """Check that no user has samples in two splits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        named = [*self.train, *self.validation, *self.test]
        if repeated := sorted({value for value in named if named.count(value) > 1}):
            raise ValueError(f"gives the value {repeated[0]!r} to two splits")


@dataclass(frozen=True, kw_only=True)
class ByTime:
    """Three periods, the same for all users."""

    validation: int
    """First timestamp of validation, in ticks."""
    test: int
    """First timestamp of test."""
    end: int | None = None
    """First timestamp that is no longer test; later rows are history only."""

    def __post_init__(self) -> None:
        if not self.validation < self.test < (self.test + 1 if self.end is None else self.end):
            raise ValueError(f"times validation {self.validation}, test {self.test}, end {self.end} must rise")


@dataclass(frozen=True, kw_only=True)
class Split:
    """How samples are divided; exactly one of the three."""

    per_user: PerUser | None = None
    """By each user's own time."""
    by_value: ByValue | None = None
    """By a value of the row."""
    by_time: ByTime | None = None
    """By two points in time."""

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.per_user, self.by_value, self.by_time)) != 1:
            raise ValueError("needs exactly one of `per_user`, `by_value` and `by_time`")

    @property
    def way(self) -> str:
        """Name of the field that is set."""
        return next(f.name for f in fields(self) if getattr(self, f.name) is not None)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that turns raw files into a prepared data set."""

    name: str
    """Of the data set."""
    log: Source
    """The interactions, one row each."""
    user: FeatureMap
    """Whose row it is."""
    item: FeatureMap
    """What was shown: the target of a sample and the subject of a history event."""
    timestamp: Timestamp
    """When."""
    label: Value
    """0 or 1, or a condition."""
    split: Split
    """Train, validation and test."""
    raw: str | None = None
    """Folder of the raw files, relative to the recipe, or ``bundled:NAME`` for data inside the package;
    ``--raw`` overrides it."""
    note: str | None = None
    """Where the user gets the files and what to know about them; copied into the report."""
    item_table: ItemTable | None = None
    """Side info of items."""
    item_side: dict[str, FeatureMap] = field(default_factory=dict)
    """Features of the item."""
    event_side: dict[str, FeatureMap] = field(default_factory=dict)
    """Features of a history event; never known for the target, so the outcome may stand here."""
    context: dict[str, FeatureMap] = field(default_factory=dict)
    """Features of the request, known when the sample is scored. An expression here must look at no later row."""
    history: Rows = Rows()
    """Rows that become history events."""
    target: Rows = Rows()
    """Rows that become samples."""
    max_rejected: float = 0.01
    """Share of rows that may be rejected before the job fails."""
    names: dict[str, str] = field(default_factory=dict)
    """Other names for ``user``, ``item``, ``timestamp`` and ``label`` in the prepared data set."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"`max_rejected` is {self.max_rejected}; expected a share between 0 and 1")
        for group in ("event_side", "context"):
            for name, feature in getattr(self, group).items():
                if feature.length > 1 or feature.split is not None or feature.from_log:
                    raise ValueError(
                        f"`{group}.{name}` has `split`, `length` or `from_log`, which only item side info may have"
                    )
        if stray := sorted(set(self.names) - {"user", "item", "timestamp", "label"}):
            raise ValueError(f"`names` renames {stray[0]!r}; only user, item, timestamp and label can be renamed")
        renamed = [name for part, name in self.names.items() if name != part]
        for name in [*self.item_side, *self.event_side, *self.context, *renamed]:
            if name.lower() in RESERVED:
                raise ValueError(f"the feature name {name!r} is reserved; choose another")
        from_table = [name for name, feature in self.item_side.items() if not feature.from_log]
        if from_table and self.item_table is None:
            raise ValueError(f"`item_side.{from_table[0]}` needs an `item_table`, or `from_log: true`")
        assert set(TIMESTAMP_UNITS) >= {self.timestamp.unit}

    def name_of(self, part: str) -> str:
        """Name that ``user``, ``item``, ``timestamp`` or ``label`` bears in the prepared data set."""
        return self.names.get(part, part)
