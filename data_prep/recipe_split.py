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
class ByUserFold:
    """Users dealt into folds by a hash of their id, the same whoever else is in the log."""

    folds: int
    """Number of folds."""
    validation: list[int]
    """Folds, counted from 0, of validation users."""
    test: list[int]
    """Folds of test users; the rest train."""
    seed: int = 0
    """Another seed deals anew."""

    def __post_init__(self) -> None:
        held_out = [*self.validation, *self.test]
        if any(not 0 <= fold < self.folds for fold in held_out) or len(set(held_out)) < len(held_out):
            raise ValueError(f"folds {held_out} must be distinct and lie in 0 ... {self.folds - 1}")
        if not (self.validation and self.test and len(held_out) < self.folds):
            raise ValueError(
                f"of {self.folds} folds, validation {self.validation} and test {self.test} leave a part empty"
            )


@dataclass(frozen=True, kw_only=True)
class Split:
    """How samples are divided; exactly one of the four."""

    per_user: PerUser | None = None
    """By each user's own time."""
    by_value: ByValue | None = None
    """By a value of the row."""
    by_time: ByTime | None = None
    """By two points in time."""
    by_user_fold: ByUserFold | None = None
    """By a hash of the user."""

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.per_user, self.by_value, self.by_time, self.by_user_fold)) != 1:
            raise ValueError("needs exactly one of `per_user`, `by_value`, `by_time` and `by_user_fold`")

    @property
    def way(self) -> str:
        """Name of the field that is set."""
        return next(f.name for f in fields(self) if getattr(self, f.name) is not None)
