"""Recipe keys of categorical features: how raw values become codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from data_prep.recipe_sources import Value

MOST_CODES = 2**32 - 2
"""Codes of a hashed feature: with code 0 they fill 32 bits."""


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
    hash: int | None = None
    """Spread the values over this many codes by a hash of their text, without a dictionary: code
    1 + h % hash, where h is the first 12 hexadecimal digits of the value's MD5 checksum. Values may share a code."""
    min_count: int = 1
    """Values that stand in fewer rows get no code of their own."""
    vocabulary: Literal["log", "train"] = "log"
    """Rows whose values get codes, and are counted: the whole log and the item table, or only what training sees:
    its samples, and events that lie before a training sample of their user."""
    oov_buckets: int | None = None
    """Codes, behind those of the dictionary, over which values without a code of their own are spread by the same
    hash. Without it such a value is unknown: code 0."""
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
        self._check_ids()

    def _check_ids(self) -> None:
        if self.buckets is not None and self.id_rule:
            raise ValueError(
                f"`buckets` codes a number without its values, so {_told(self.id_rule)} has no meaning beside"
            )
        if self.hash is not None:
            if not 1 <= self.hash <= MOST_CODES:
                raise ValueError(f"`hash` is {self.hash}; expected a number of codes from 1 to {MOST_CODES}")
            if beside := {key: value for key, value in self.id_rule.items() if key != "hash"}:
                raise ValueError(f"`hash` gives every value a code, so {_told(beside)} has no meaning beside it")
        if self.min_count < 1:
            raise ValueError(f"`min_count` is {self.min_count}; expected at least 1")
        if self.oov_buckets is not None and self.oov_buckets < 1:
            raise ValueError(f"`oov_buckets` is {self.oov_buckets}; expected at least 1, or leave it out")
        if self.oov_buckets is not None and len(self.id_rule) == 1:
            raise ValueError(
                "`oov_buckets` would stay empty, as every value of the log has a code of its own; "
                "add `min_count` or `vocabulary: train`"
            )

    @property
    def id_rule(self) -> dict[str, Any]:
        """The keys by which values share codes or have none, where they differ from one code for each value."""
        keys = {"hash": None, "min_count": 1, "vocabulary": "log", "oov_buckets": None}
        return {key: getattr(self, key) for key, usual in keys.items() if getattr(self, key) != usual}


def _told(rule: dict[str, Any]) -> str:
    return " and ".join(f"`{key}: {value}`" for key, value in rule.items())
