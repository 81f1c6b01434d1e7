"""Recipe keys of rows: which of them play a part, and as what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows of the log play a part."""

    where: str | None = None
    """SQL condition over the log's columns and ``log_row``, evaluated on accepted rows; windows are allowed."""


@dataclass(frozen=True, kw_only=True)
class Deduplicate:
    """Rows that say the same thing again are taken out, from samples and history."""

    same: list[Literal["user", "item", "timestamp", "label", "session", "request"]]
    """What rows must have in common to count as the same; ``user`` always belongs to it."""
    within: int | None = None
    """Ticks: rows are the same when each lies at most this long after the one before. Default: at any distance."""
    keep: Literal["first", "last"] = "first"
    """Which one stays, by (timestamp, log row)."""

    def __post_init__(self) -> None:
        if "user" not in self.same:
            raise ValueError("`same` lacks user; rows of different users are never the same")
        if self.within is not None and self.within < 0:
            raise ValueError(f"`within` is {self.within}; expected 0 or more ticks")


@dataclass(frozen=True, kw_only=True)
class Users:
    """Which users play a part, by the number of their history events in the whole log."""

    min_events: int = 0
    """Users with fewer are left out."""
    max_events: int | None = None
    """Users with more are left out: robots, shared accounts."""

    def __post_init__(self) -> None:
        if self.max_events is not None and self.max_events < self.min_events:
            raise ValueError(f"max_events {self.max_events} is below min_events {self.min_events}")


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Negatives for a log of clicks alone: items that the user did not click at that moment.

    Each is a sample with the user, time and context of its click, label 0, and no event of the history. The sample
    column ``log_q`` holds, for clicks too, the logarithm of the item's chance to be drawn.
    """

    per_positive: int
    """Negatives per sample with label 1; fewer where too few items can be found."""
    by: Literal["uniform", "popularity", "recent"]
    """``uniform`` over the clicked items of the log; ``popularity``: by the number of their clicks in it; ``recent``:
    by the number of their clicks in the time ``window`` before, strictly before the click."""
    window: int | None = None
    """Ticks, for ``recent``: an hour, say."""
    seed: int = 0
    """Another seed draws others."""

    def __post_init__(self) -> None:
        if self.per_positive < 1:
            raise ValueError(f"`per_positive` is {self.per_positive}; expected at least 1")
        if (self.by == "recent") != (self.window is not None) or (self.window or 1) < 1:
            raise ValueError("`window` in ticks belongs to `by: recent`, and to that alone")


@dataclass(frozen=True, kw_only=True)
class Downsample:
    """Fewer samples with label 0. Those that stay have the weight 1/``keep`` in the sample column ``weight``."""

    keep: float
    """Share of samples with label 0 that stays, by a hash of the log row. History events all stay."""
    splits: list[Literal["train", "val", "test"]] = field(default_factory=lambda: ["train"])
    """Where; validation and test are best left whole, so that their metrics say what they seem to."""
    seed: int = 0
    """Another seed keeps others."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"`keep` is {self.keep}; expected a share above 0 and at most 1")
