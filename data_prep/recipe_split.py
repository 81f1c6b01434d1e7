"""Recipe keys of the division into train, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, fields

from data_prep.recipe_sources import Value


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
