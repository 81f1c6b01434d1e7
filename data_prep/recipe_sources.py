"""Recipe keys of what is read: files, columns, timestamps, side tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Source:
    """One table spread over one or more files of the same layout."""

    files: list[str]
    """Paths or globs below the raw folder; a single string is a list of one. Files are read in sorted order."""
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl"] = "auto"
    """``auto`` goes by the suffix of the first file: .parquet, .tsv, .jsonl or .ndjson, anything else CSV; text may be
    compressed as .gz or .zst. JSON lines hold one object a line; a nested value is read as its JSON text."""
    types: dict[str, str] = field(default_factory=dict)
    """Type of each text column that the recipe uses: string, int64, float64. Required for CSV, TSV and JSON lines,
    where a cell that does not parse rejects its row; not for Parquet, which knows its types."""
    delimiter: str | None = None
    """Between text columns, up to four characters; default comma, or tab for TSV."""
    quote: str = '"'
    """Quote character of text files; an empty string when quotes have no meaning."""
    columns: list[str] | None = None
    """Column names of text files without a header row."""
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"
    """Of text files."""
    explode: list[str] = field(default_factory=list)
    """List columns of a log in Parquet that become one row per element, side by side, such as the items of a page.
    The column ``position`` then counts the elements of a list from 0, and ``list_row`` the lists."""


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
    format: str | None = None
    """Of a text: ``%Y %m %d %H %M %S``, and ``%f`` (fraction of a second, any number of digits) where it is last. For
    example ``%Y-%m-%d %H:%M:%S``. Columns that hold dates or times by their type need none."""
    zone: str = "UTC"
    """Time zone of a text or of a column without one, such as ``Asia/Shanghai``. An hour that the change to summer
    time skips or repeats is read with the offset of before the change."""
    earliest: int | None = None
    """First tick that is believed; a row before it, of a clock that was set wrong, say, is rejected."""
    latest: int | None = None
    """Last tick that is believed. One row of the year 2106 would otherwise stretch every split by time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.earliest is not None and self.latest is not None and self.earliest > self.latest:
            raise ValueError(f"`earliest` {self.earliest} is after `latest` {self.latest}")


@dataclass(frozen=True, kw_only=True)
class Log(Source):
    """One of the logs that become the history."""

    name: str | None = None
    """Content of the column ``log_name`` for its rows, such as ``feed``; needed when there are several logs."""
    values: dict[str, str] = field(default_factory=dict)
    """New column -> SQL over this log's own columns, so that logs with other names or units can be merged. A column
    that a log neither has nor computes is null in its rows."""


@dataclass(frozen=True, kw_only=True)
class Join:
    """A table whose values are looked up for each row of the log: of a user, an item, a page."""

    source: Source
    """Files of the table."""
    key: Value
    """What the table's rows are found by."""
    on: Value
    """The same id in the log."""
    values: dict[str, str]
    """New column of the log -> SQL over the table's columns. Null where the key is not found."""
    valid_from: Timestamp | None = None
    """From when a row holds, in the log's unit. A row of the log then gets the latest value from strictly before its
    own time. Without it a key has one row, which holds at any time, also before it was known."""
    keep: Literal["first", "last"] | None = None
    """Which row to take when a key (and ``valid_from``) stands more than once; by default that is a mistake."""

    def __post_init__(self) -> None:
        if self.valid_from is not None and (self.valid_from.earliest, self.valid_from.latest) != (None, None):
            raise ValueError("`earliest` and `latest` belong to the log's timestamp; `valid_from` takes neither")


@dataclass(frozen=True, kw_only=True)
class ItemTable:
    """Side info of items: one row per item."""

    source: Source
    """Files of the table."""
    key: Value
    """The item id; the same values as in the log."""
    keep: Literal["first", "last"] | None = None
    """Which row to take when an item stands more than once; by default that is a mistake."""
