"""Initial values of the rows of sharded tables: all of them at the start, single ones when they change hands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from laser.model.embeddings import BLOCK_ROWS
from laser.train.fused_state import fused_state
from laser.train.optim import TableOptimizer

ROWS_AT_A_TIME = 1 << 20
"""Initial rows drawn at once, to bound the memory beside the table itself."""

InitialRows = Callable[[str, int, int, int], Tensor]
"""Of (table, start, stop, width): float32 [stop - start, width]."""


@torch.no_grad()
def fill_rows(weight: Any, table: str, initial: InitialRows) -> None:
    """Write the initial rows of a table into the shards that this process holds."""
    for part, (row, column) in local_parts(weight):
        rows, columns = part.shape
        for start in range(0, rows, ROWS_AT_A_TIME):
            stop = min(start + ROWS_AT_A_TIME, rows)
            values = initial(table, row + start, row + stop, weight.size(1))
            part[start:stop].copy_(values[:, column : column + columns])


def local_parts(weight: Any) -> list[tuple[Tensor, tuple[int, int]]]:
    """Parts of a plain or sharded table that this process holds, and the row and column where each begins."""
    if not hasattr(weight, "local_shards"):
        return [(weight, (0, 0))]
    return [(shard.tensor, tuple(shard.metadata.shard_offsets)) for shard in weight.local_shards()]


@torch.no_grad()
def reset_rows(collection: Any, table: str, rows_R: Tensor, initial: InitialRows, optimizer: TableOptimizer) -> None:
    """Give rows of a table their initial values again, and their optimizer state its own.

    Args:
        collection: sharded, with the table.
        table: name.
        rows_R: int64 numbers of rows, sorted; each process changes those that it holds.
        initial: initial rows.
        optimizer: of the tables.
    """
    rows_R = rows_R.cpu()
    weight = collection.state_dict()[f"embeddings.{table}.weight"]
    for shard in weight.local_shards():
        (_, column), (_, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        for mine, inside in _in_blocks(shard, rows_R):
            block = int(mine[0]) // BLOCK_ROWS * BLOCK_ROWS
            values = initial(table, block, min(block + BLOCK_ROWS, weight.size(0)), weight.size(1))
            values = values[mine - block, column : column + columns]
            shard.tensor[inside.to(shard.tensor.device)] = values.to(shard.tensor)
    start = {"adagrad": optimizer.initial_accumulator, "rowwise_adagrad": optimizer.initial_accumulator}
    for parameter, states in fused_state(collection.fused_optimizer).items():
        if parameter != f"embeddings.{table}.weight":
            continue
        for state in states.values():
            for shard in state.local_shards():
                for _, inside in _in_blocks(shard, rows_R):
                    shard.tensor[inside.to(shard.tensor.device)] = start.get(optimizer.name, 0.0)


def _in_blocks(shard: Any, rows_R: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of those rows that a shard holds: their numbers in the table and in the shard, in blocks of one seed each."""
    first, count = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
    mine = rows_R[(rows_R >= first) & (rows_R < first + count)]
    sizes = torch.unique_consecutive(mine // BLOCK_ROWS, return_counts=True)[1].tolist()
    return [(part, part - first) for part in mine.split(sizes)] if len(mine) else []
