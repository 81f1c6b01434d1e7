"""The recipe of a data set: which files there are and how their columns become features.

A recipe is a YAML file (``conf/prep/*.yaml``) that ``data_prep.recipe_file`` reads into the dataclass below and those
of the ``data_prep.recipe_*`` modules: what is read, features, rows, split. Wherever a value comes from a column,
``expression`` may stand instead of ``column``: SQL in DuckDB's dialect over the source's columns, translated to the
engine in use.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from data_prep.expected import Edition
from data_prep.recipe_features import FeatureMap
from data_prep.recipe_rows import Deduplicate, Downsample, Negatives, Rows, Users
from data_prep.recipe_sources import ItemTable, Join, Log, Timestamp, Value
from data_prep.recipe_split import Split
from data_prep.timestamps import check_format
from laser.schema import NO_TABLE_NAMES, no_table_name

SPLITS = ("train", "val", "test")
RESERVED = frozenset(
    {
        *("user", "item", "timestamp", "label", "target", "history", "split", "row", "raw", "place"),
        *("log_row", "log_name", "session", "request", "weight", "log_q"),
    }
)
"""Names with a meaning of their own, in any case of letters."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that turns raw files into a prepared data set."""

    name: str
    """Of the data set."""
    log: list[Log]
    """The interactions, one row each; several logs become one history, told apart by the column ``log_name``."""
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
    expected: dict[str, Edition] = field(default_factory=dict)
    """Editions of the data set by name, with what their publisher says of files and counts."""
    item_table: ItemTable | None = None
    """Side info of items."""
    item_side: dict[str, FeatureMap] = field(default_factory=dict)
    """Features of the item."""
    event_side: dict[str, FeatureMap] = field(default_factory=dict)
    """Features of a history event; never known for the target, so the outcome may stand here."""
    context: dict[str, FeatureMap] = field(default_factory=dict)
    """Features of the request, known when the sample is scored. An expression here must look at no later row."""
    history: Rows = field(default_factory=Rows)
    """Rows that become history events."""
    target: Rows = field(default_factory=Rows)
    """Rows that become samples."""
    joins: dict[str, Join] = field(default_factory=dict)
    """Tables whose values become columns of the log."""
    session: Value | None = None
    """Session of a row: its raw id becomes the sample column ``session``."""
    request: Value | None = None
    """Request that the row was part of: its raw id becomes the sample column ``request``."""
    deduplicate: Deduplicate | None = None
    """Rows taken out because they repeat another."""
    users: Users | None = None
    """Users left out by their number of events. This looks at the whole log, so at the future too."""
    negatives: Negatives | None = None
    """Negatives drawn for a log that holds clicks alone."""
    downsample: Downsample | None = None
    """Samples with label 0 left out, by chance."""
    max_rejected: float = 0.01
    """Share of rows that may be rejected before the job fails."""
    names: dict[str, str] = field(default_factory=dict)
    """Other names for ``user``, ``item``, ``timestamp`` and ``label`` in the prepared data set."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"`max_rejected` is {self.max_rejected}; expected a share between 0 and 1")
        if self.user.id_rule:
            raise ValueError(
                f"`user` has `{next(iter(self.user.id_rule))}`, which would join the histories of several users; give "
                "it to a context feature of the same column, whose embedding then stands for the user's"
            )
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
        _check_tables(self)
        _check_logs(self.log)
        _check_joins(self)
        lacking = set(self.deduplicate.same if self.deduplicate else []) & {"session", "request"}
        if unnamed := sorted(name for name in lacking if getattr(self, name) is None):
            raise ValueError(f"`deduplicate.same` has {unnamed[0]!r}, but the recipe names no `{unnamed[0]}`")
        for time in [self.timestamp, *(join.valid_from for join in self.joins.values() if join.valid_from)]:
            check_format(time)

    @property
    def sample_columns(self) -> list[str]:
        """Columns of a sample that are no features: stored for reports and losses, unknown to the schema."""
        found = [name for name in ("session", "request") if getattr(self, name) is not None]
        found += ["log_q"] if self.negatives else []
        return found + (["weight"] if self.downsample else [])

    def name_of(self, part: str) -> str:
        """Name that ``user``, ``item``, ``timestamp`` or ``label`` bears in the prepared data set."""
        return self.names.get(part, part)


def _check_tables(recipe: Recipe) -> None:
    ids = {recipe.name_of("user"): recipe.user, recipe.name_of("item"): recipe.item}
    for name, feature in (ids | recipe.item_side | recipe.event_side | recipe.context).items():
        if feature.width and (table := feature.table or name) in NO_TABLE_NAMES:
            raise ValueError(no_table_name(name, table))


def _check_logs(logs: list[Log]) -> None:
    if not logs:
        raise ValueError("`log` is an empty list; name at least one source")
    names = [log.name for log in logs]
    if len(logs) > 1 and None in names:
        raise ValueError(f"`log[{names.index(None)}]` has no `name`; every one of several logs needs one")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"`log` has two sources of the name {repeated[0]!r}; name them apart")


def _check_joins(recipe: Recipe) -> None:
    brought: set[str] = set()
    for name, join in recipe.joins.items():
        if repeated := sorted(brought & set(join.values)):
            raise ValueError(f"`joins.{name}` brings the column {repeated[0]!r} for the second time; rename it")
        brought |= set(join.values)
        if join.valid_from is not None and join.valid_from.unit != recipe.timestamp.unit:
            units = f"{join.valid_from.unit!r} and `timestamp` {recipe.timestamp.unit!r}"
            raise ValueError(f"`joins.{name}.valid_from` has the unit {units}; give both one unit")
