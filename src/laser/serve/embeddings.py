"""Embeddings of a batch from tables in a memory map: what ``TableEmbeddings`` gives, without TorchRec's tables.

Rows are read on the host, widened to float32, and only then copied to the device of the ids.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from laser.model.embeddings import Found, TableEmbeddings, average_weights
from laser.schema import Feature, Schema
from laser.serve.rows import ROWS, Table


class MappedEmbeddings(TableEmbeddings):
    """Stands in a model in the place of its tables.

    Args:
        schema: features and tables.
        tables: by name.

    Raises:
        ValueError: when a table is missing or has another size.
    """

    def __init__(self, schema: Schema, tables: Mapping[str, Table]) -> None:
        super().__init__(schema, table_device="meta")
        self.collections = nn.ModuleDict()
        for name, wanted in self.tables.items():
            if name not in tables:
                raise ValueError(f"there is no table {name!r}; there are {', '.join(tables)}")
            found = (len(tables[name].parts[ROWS]), tables[name].width)
            if found != (wanted.rows, wanted.width):
                raise ValueError(f"table {name!r} is {found[0]} x {found[1]}, expected {wanted.rows} x {wanted.width}")
        self.mapped = dict(tables)

    def events(self, history: Mapping[str, Tensor]) -> Tensor:
        """Embeddings of T history events, [T, E]."""
        return torch.cat([self._vectors(feature, history[feature.name]) for feature in self.history], dim=-1)

    def targets(self, target: Mapping[str, Tensor]) -> Tensor:
        """Embeddings of B items, [B, E]."""
        return torch.cat([self._vectors(feature, target[feature.name]) for feature in self.target], dim=-1)

    def contexts(self, context: Mapping[str, Tensor]) -> list[Tensor]:
        """One [B, W] tensor per embedded context field."""
        return [self._vectors(feature, context[feature.name]) for feature in self.context]

    def _rows(self, distinct: dict[str, Tensor], on_host: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows of the distinct ids of each table."""
        return {name: self.mapped[name](ids.cpu()).to(ids.device) for name, ids in distinct.items()}

    def _vectors(self, feature: Feature, ids: Tensor) -> Tensor:
        """[N, W] rows of N ids, or averages of N lists of ids."""
        table = self.mapped[str(feature.table)]
        if ids.dim() == 1:
            return table(ids.cpu()).to(ids.device)
        distinct, index = torch.unique(ids, return_inverse=True)
        return Found(table(distinct.cpu()).to(ids.device), index.int(), average_weights(ids)).vectors()
