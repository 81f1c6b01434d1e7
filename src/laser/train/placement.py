"""Which process holds which part of which table. Plain arithmetic: it plans for clusters that are not there, too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

ShardingType = Literal["row_wise", "table_wise", "column_wise", "table_row_wise", "data_parallel"]
COLUMN_MULTIPLE = 4
"""FBGEMM's kernels want embedding rows of whole 16-byte groups of float32."""


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How embedding tables are spread over processes. One process holds whole tables, whatever is said here.

    Args:
        default: sharding of every table that ``tables`` does not name. ``row_wise`` spreads the rows evenly;
            ``table_wise`` gives whole tables to processes, the largest first, each to the one that holds least;
            ``column_wise`` cuts every row; ``table_row_wise`` gives whole tables to hosts in the same way, and spreads
            their rows evenly over the host's processes; ``data_parallel`` keeps whole tables on all processes.
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


def place(
    tables: Iterable[TableSize], sharding: Sharding, world_size: int, host_size: int | None = None
) -> dict[str, Placement]:
    """Place every table, the same on every process.

    With one process a table is whole, however it is sharded with more: to sort its ids by process and back again would
    cost time and change nothing. With one host ``table_row_wise`` is ``row_wise``.

    Args:
        tables: to place.
        sharding: of the recipe.
        world_size: number of processes.
        host_size: processes of each host; ``None``: all are on one.

    Raises:
        ValueError: when a table is unknown, cannot be cut into equal columns of whole 16-byte groups, or is to lie on
            one host and the processes do not fill hosts.
    """
    tables = sorted(tables, key=lambda table: (-table.rows * table.width, table.name))
    if unknown := sorted(sharding.tables.keys() - {table.name for table in tables}):
        raise ValueError(
            f"sharding.tables names {unknown[0]!r}, which is no table of the model; it has "
            f"{', '.join(sorted(table.name for table in tables))}"
        )
    host_size = min(host_size or world_size, world_size)
    if world_size % host_size and "table_row_wise" in sharding.used:
        raise ValueError(
            f"{world_size} processes do not fill hosts of {host_size}, which table_row_wise sharding needs; give a "
            f"multiple of {host_size} processes, or set the sharding to row_wise"
        )
    groups = {
        "table_wise": [(rank,) for rank in range(world_size)],
        "table_row_wise": [tuple(range(first, first + host_size)) for first in range(0, world_size, host_size)],
    }
    held = [0.0] * world_size
    found = {}
    for table in tables:
        kind = sharding.of(table.name)
        if kind == "column_wise":
            check_columns(table, world_size)
        if world_size == 1:
            kind = "table_wise"
        elif kind == "table_row_wise" and host_size == world_size:
            kind = "row_wise"
        ranks = min(groups.get(kind, [tuple(range(world_size))]), key=lambda ranks: sum(held[rank] for rank in ranks))
        if kind in groups:
            for rank in ranks:
                held[rank] += table.rows * table.width / len(ranks)
        found[table.name] = Placement(kind, ranks)
    return found


def check_columns(table: TableSize, world_size: int) -> None:
    """Refuse a table whose rows cannot be cut for so many processes.

    Raises:
        ValueError: naming the table.
    """
    if table.width % (COLUMN_MULTIPLE * world_size):
        raise ValueError(
            f"table {table.name!r} of width {table.width} cannot be cut column_wise over {world_size} processes; "
            f"its width must be a multiple of {COLUMN_MULTIPLE * world_size}"
        )
