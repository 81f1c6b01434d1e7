"""Which process holds which part of which table. Plain arithmetic: it plans for clusters that are not there, too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

ShardingType = Literal["row_wise", "table_wise", "column_wise"]
COLUMN_MULTIPLE = 4
"""FBGEMM's kernels want embedding rows of whole 16-byte groups of float32."""


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How embedding tables are spread over processes. One process holds whole tables, whatever is said here.

    Args:
        default: sharding of every table that ``tables`` does not name. ``row_wise`` spreads the rows evenly;
            ``table_wise`` gives whole tables to processes, the largest first, each to the one that holds least;
            ``column_wise`` cuts every row.
        tables: sharding of single tables, by table name.
    """

    default: ShardingType = "row_wise"
    tables: dict[str, ShardingType] = field(default_factory=dict)

    def of(self, table: str) -> ShardingType:
        """Sharding of one table."""
        return self.tables.get(table, self.default)

    @property
    def used(self) -> set[str]:
        """All sharding types that occur."""
        return {self.default, *self.tables.values()}


@dataclass(frozen=True)
class TableSize:
    """Rows and width of a table."""

    name: str
    rows: int
    width: int


@dataclass(frozen=True)
class Placement:
    """Where a table lies."""

    kind: ShardingType
    ranks: tuple[int, ...]
    """Processes that hold a part."""


def place(tables: Iterable[TableSize], sharding: Sharding, world_size: int) -> dict[str, Placement]:
    """Place every table, the same on every process.

    With one process a table is whole, however it is sharded with more: to sort its ids by process and back again would
    cost time and change nothing.

    Raises:
        ValueError: when a table is unknown, or cannot be cut into equal columns of whole 16-byte groups.
    """
    tables = sorted(tables, key=lambda table: (-table.rows * table.width, table.name))
    if unknown := sorted(sharding.tables.keys() - {table.name for table in tables}):
        raise ValueError(
            f"sharding.tables names {unknown[0]!r}, which is no table of the model; it has "
            f"{', '.join(sorted(table.name for table in tables))}"
        )
    everyone = tuple(range(world_size))
    held = [0] * world_size
    found = {}
    for table in tables:
        kind = sharding.of(table.name)
        if kind == "column_wise" and table.width % (COLUMN_MULTIPLE * world_size):
            raise ValueError(
                f"table {table.name!r} of width {table.width} cannot be cut column_wise over {world_size} processes; "
                f"its width must be a multiple of {COLUMN_MULTIPLE * world_size}"
            )
        if kind == "table_wise" or world_size == 1:
            least = held.index(min(held))
            held[least] += table.rows * table.width
            found[table.name] = Placement("table_wise", (least,))
        else:
            found[table.name] = Placement(kind, everyone)
    return found
