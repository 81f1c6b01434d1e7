"""Recipe keys of rows: which of them play a part, and as what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows of the log play a part."""

    where: str | None = None
    """SQL condition over the log's columns and ``log_row``, evaluated on accepted rows; windows are allowed."""
