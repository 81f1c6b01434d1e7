"""Ids of a batch to the processes that have their rows, and these rows back, without a host that waits for its device.

Ids of a table are ascending, and in host memory, too. So what goes to a process is a slice of them, whose ends the host
finds by bisection. Hosts tell each other the sizes of their slices over gloo, while the devices still compute. TorchRec
sorts ids by receiver on the device and exchanges the numbers there, for which every host has to wait in every step.

Two processes; rows 0 and 1 of table a are on process 0, 2 and 3 on process 1, table b is whole on process 1::

    ids     a  0 1 3      b  5 7
    sent    to 0:  0 1    to 1:  3 | 5 7        part after part of each process

Legend of shape suffixes: Q processes; E parts of tables, process after process; P parts of this process; N ids that it
sends; M ids that it is sent; W width of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from laser.model.embeddings import offsets_of_bags
from laser.versions import check_triple

check_triple()

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # noqa: E402


class Part(NamedTuple):
    """What a process has of a table: rows ``first`` ... ``end - 1``, from ``column`` on."""

    table: str
    first: int
    end: int
    column: int


def parts_of(groups: Sequence[Any]) -> list[Part]:
    """The parts that a process looks up together, from TorchRec's groups of tables, in their order."""
    found = []
    for table in (table for group in groups for table in group.embedding_tables):
        (row, column), (rows, _) = table.local_metadata.shard_offsets, table.local_metadata.shard_sizes
        found.append(Part(table.name, row, row + rows, column))
    return found


class Exchange:
    """Looks up tables that are spread in one way.

    Args:
        parts: of each process.
        width: W.
        dtype: of rows.
        hosts: a gloo group of all processes.
        look_up: rows [M, W] of a KeyedJaggedTensor that has a key for each part of this process.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[Part]],
        width: int,
        dtype: torch.dtype,
        hosts: dist.ProcessGroup | None,
        look_up: Callable[[KeyedJaggedTensor], Tensor],
    ) -> None:
        self.width, self.dtype, self.hosts, self.look_up = width, dtype, hosts, look_up
        self.own = parts[dist.get_rank()]
        self.parts_Q = [len(each) for each in parts]
        self.parts_E = [part for each in parts for part in each]
        self.of_table: dict[str, np.ndarray] = {}
        """Which of E are parts of a table."""
        for table in dict.fromkeys(part.table for part in self.parts_E):
            self.of_table[table] = np.array([e for e, part in enumerate(self.parts_E) if part.table == table])
        self.first_E, self.end_E = (np.array([part[at] for part in self.parts_E], np.int64) for at in (1, 2))
        self.starts_Q = np.cumsum([0, *self.parts_Q[:-1]])

    def rows(self, ids: Mapping[str, Tensor], on_host: Mapping[str, Tensor], stride: int) -> dict[str, Tensor]:
        """Rows of the ids of each table; collective.

        Args:
            ids: ascending int64 ids of every table of ``parts``, on the device.
            on_host: the same in host memory.
            stride: number of bags over which ids are spread for the look-up.

        Returns:
            By table [ids, width of the table], which pass gradients on; the look-up gets their mean over processes.
        """
        low_E, high_E = self._slices(on_host)
        send_E = (high_E - low_E).tolist()
        take_QP = self._told(send_E)
        send = [sum(send_E[start : start + count]) for start, count in zip(self.starts_Q.tolist(), self.parts_Q)]
        take = [sum(take_P) for take_P in take_QP]
        bounds = zip(self.parts_E, low_E.tolist(), high_E.tolist())
        id_N = torch.cat([ids[part.table][low:high] for part, low, high in bounds])
        id_M = id_N.new_empty(sum(take))
        dist.all_to_all_single(id_M, id_N, take, send)
        rows_MW = self._looked_up(id_M, take_QP, stride)
        return self._by_table(Back.apply(rows_MW, take, send).split(send_E))

    def _slices(self, on_host: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Of its table's ids, where those of each part begin and end."""
        low_E, high_E = np.empty_like(self.first_E), np.empty_like(self.first_E)
        for table, index in self.of_table.items():
            known = on_host[table].numpy()
            low_E[index], high_E[index] = known.searchsorted(self.first_E[index]), known.searchsorted(self.end_E[index])
        return low_E, high_E

    def _told(self, send_E: list[int]) -> list[list[int]]:
        """How many ids each process wants of each part of this one, [Q, P]."""
        own = len(self.own)
        take_QP = torch.empty(len(self.parts_Q), own, dtype=torch.int64)
        dist.all_to_all_single(
            take_QP.view(-1), torch.tensor(send_E), [own] * len(self.parts_Q), self.parts_Q, group=self.hosts
        )
        return take_QP.tolist()

    def _looked_up(self, id_M: Tensor, take_QP: list[list[int]], stride: int) -> Tensor:
        """Rows [M, W] of ids that come process after process and go back so, but are looked up part after part."""
        pieces = [len(self.own) * q + p for p in range(len(self.own)) for q in range(len(take_QP))]
        by_process = [count for take_P in take_QP for count in take_P]
        local_M = _ordered(id_M, by_process, pieces)
        counts_P = [sum(counts_Q) for counts_Q in zip(*take_QP)]
        for part, local in zip(self.own, local_M.split(counts_P) if counts_P else ()):
            local.sub_(part.first)
        keys, offsets = [part.table for part in self.own], offsets_of_bags(counts_P, stride, id_M.device)
        found = self.look_up(KeyedJaggedTensor(keys, local_M, offsets=offsets, stride=stride, length_per_key=counts_P))
        # A process without parts answers with nothing in float32.
        rows_MW = found.view(-1, self.width).to(self.dtype)
        return _ordered(rows_MW, [by_process[piece] for piece in pieces], np.argsort(pieces).tolist())

    def _by_table(self, rows_E: Sequence[Tensor]) -> dict[str, Tensor]:
        found = {}
        for table, index in self.of_table.items():
            columns: dict[int, list[Tensor]] = {}
            for e in sorted(index.tolist(), key=lambda e: self.parts_E[e][1:]):
                columns.setdefault(self.parts_E[e].column, []).append(rows_E[e])
            found[table] = _joined([_joined(columns[column], 0) for column in sorted(columns)], 1)
        return found


class Back(Function):
    """Rows to the processes that want them, and the mean over processes of their gradients back."""

    @staticmethod
    def forward(ctx: Any, rows_MW: Tensor, take: list[int], send: list[int]) -> Tensor:  # type: ignore[override]
        """Rows [N, W] of the ids that this process sent."""
        ctx.take, ctx.send = take, send
        rows_NW = rows_MW.new_empty(sum(send), rows_MW.shape[1])
        dist.all_to_all_single(rows_NW, rows_MW.contiguous(), send, take)
        return rows_NW

    @staticmethod
    def backward(ctx: Any, gradient_NW: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """Gradients [M, W]; those of one row from several processes are added up by whoever looked it up."""
        gradient_MW = gradient_NW.new_empty(sum(ctx.take), gradient_NW.shape[1])
        dist.all_to_all_single(gradient_MW, gradient_NW.contiguous(), ctx.take, ctx.send)
        return gradient_MW.div_(len(ctx.take)), None, None


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _ordered(values: Tensor, sizes: list[int], order: list[int]) -> Tensor:
    """Pieces of these sizes in another order, copied if it is one."""
    if order == sorted(order):
        return values
    pieces = values.split(sizes)
    return torch.cat([pieces[piece] for piece in order])
