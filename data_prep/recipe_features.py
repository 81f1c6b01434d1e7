"""Recipe keys of categorical features: how raw values become codes."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_prep.recipe_sources import Value


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
