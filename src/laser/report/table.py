"""A small table that a notebook shows as one, and a terminal as text."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Args:
        head: of the columns.
        rows: one cell a column.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, columns: Mapping[str, Iterable[Any]]) -> Self:
        """A table of named columns, such as those of a ``pyarrow.Table.to_pydict()``."""
        return cls(tuple(columns), tuple(tuple(map(str, row)) for row in zip(*columns.values(), strict=True)))

    def __str__(self) -> str:
        lines = (self.head, *self.rows)
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.head)
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows)
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def percent(value: float) -> str:
    """``0.123`` as ``12.3 %``; ``-`` where nothing was counted."""
    return "-" if value != value else f"{100 * value:.1f} %"
