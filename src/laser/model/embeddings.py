"""Embedding tables: TorchRec EmbeddingCollections grouped by width, one look-up per table and batch.

All ids of a table (every history field on it, target, context) are looked up together, each distinct id once::

    table "item":   items["item"] (I ids) | target["item"] (B ids)   ->  one KJT key, R distinct ids
    table "action": history["action"] (T ids)                        ->  one KJT key, R distinct ids

A field is then the rows of its table and an index into them; nothing is copied per event here.

Legend of shape suffixes: B samples; T history events, packed; I distinct items of them; K values of a multi-valued
feature; N ids of one table; R distinct ids of it; W embedding width; E concatenated embedding widths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laser.batch import Batch
from laser.ops.gather_sum import gather_sum
from laser.schema import Feature, Schema, Table
from laser.versions import check_triple

check_triple()

from torchrec.modules.embedding_configs import EmbeddingConfig  # noqa: E402
from torchrec.modules.embedding_modules import EmbeddingCollection  # noqa: E402
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # noqa: E402

BLOCK_ROWS = 1024
"""Rows that share one seed: any shard draws its rows in whole blocks, so that sharding does not change them."""


@dataclass(frozen=True)
class Found:
    """What a field's ids look up.

    Args:
        rows_RW: rows of the distinct ids of the field's table.
        index: int32 position in them of each id, [N], or [N, K] of a multi-valued field.
        weight: float32 [N, K] of a multi-valued field, which average the ids that are not 0; otherwise ``None``.
    """

    rows_RW: Tensor
    index: Tensor
    weight: Tensor | None

    def vectors(self) -> Tensor:
        """[N, W] embeddings, averaged where there are several; zero where all ids are 0."""
        return gather_sum(self.rows_RW, columns(self.index), self.weight)


@dataclass(frozen=True)
class Embedded:
    """Embeddings of one batch.

    Args:
        items: one entry per embedded item field of the history, in schema order, of I items where the batch has them
            by item, otherwise of T events.
        history: one entry per embedded event side field, in schema order, of T events.
        target_BE: target fields, concatenated in schema order.
        context: one [B, W] tensor per embedded context field, in schema order.
    """

    items: list[Found]
    history: list[Found]
    target_BE: Tensor
    context: list[Tensor]


class SortedIds(KeyedJaggedTensor):
    """Ids that ascend in every key.

    Args:
        on_host: the ids of each key in host memory; empty if they are on a device only.
        arguments, options: of TorchRec's KeyedJaggedTensor.
    """

    def __init__(self, on_host: Mapping[str, Tensor], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.on_host = on_host


def columns(index: Tensor) -> Tensor:
    """[N] as [N, 1], [N, K] as it is."""
    return index[:, None] if index.dim() == 1 else index


def initial_rows(table_name: str, start: int, stop: int, width: int, seed: int, std: float) -> Tensor:
    """Initial values N(0, std) of rows ``start`` ... ``stop - 1`` of a table, float32 [stop - start, width].

    They depend on (table, row, width, seed) alone: a row gets the same value in whatever shard it lies.
    """
    blocks = []
    for block in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)):
        digest = hashlib.blake2b(f"{table_name}/{block}/{seed}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        rows = torch.randn(BLOCK_ROWS, width, generator=generator)
        first = block * BLOCK_ROWS
        blocks.append(rows[max(start - first, 0) : stop - first])
    return torch.cat(blocks).mul_(std) if blocks else torch.empty(0, width)


def embedded(features: tuple[Feature, ...]) -> list[Feature]:
    """Those features that look up a table."""
    return [feature for feature in features if feature.table is not None]


def total_width(features: list[Feature]) -> int:
    """Width of their concatenated embeddings."""
    return sum(feature.width or 0 for feature in features)


class TableEmbeddings(nn.Module):
    """Looks up every embedded feature of a batch.

    Args:
        schema: features and tables.
        table_device: where tables are created; "meta" leaves them without values (the training strategy shards and
            fills them), ``None`` is the CPU.
        std: standard deviation of the initial rows.
        seed: of the initial rows.
        stride: number of bags over which the ids of a table are spread.

    Raises:
        ValueError: when no feature of the history or of the target is embedded, or ``stride`` is below 1.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        table_device: torch.device | str | None = None,
        std: float = 0.02,
        seed: int = 0,
        stride: int = 1024,
    ) -> None:
        super().__init__()
        self.history, self.target, self.context = map(embedded, (schema.history, schema.target, schema.context))
        if not self.history or not self.target:
            raise ValueError(
                f"schema {schema.name!r} embeds no feature of the item; "
                "name a table and width for the item or its side info"
            )
        if stride < 1:
            raise ValueError(f"lookup_stride is {stride}; expected a number of bags of at least 1, such as 1024")
        used = {feature.table for feature in self.history + self.target + self.context}
        self.tables = {name: table for name, table in schema.tables.items() if name in used}
        self.std, self.seed, self.stride = std, seed, stride
        device = torch.device(table_device or "cpu")
        widths = sorted({table.width for table in self.tables.values()})
        self.collections = nn.ModuleDict({f"width_{width}": self._collection(width, device) for width in widths})
        if device.type != "meta":
            self.reset_parameters()

    def _collection(self, width: int, device: torch.device) -> EmbeddingCollection:
        configs = [_config(table) for table in self.tables.values() if table.width == width]
        return EmbeddingCollection(tables=configs, device=device)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fill the unsharded tables with their initial rows."""
        for collection in self.collections.values():
            for name, table in collection.get_submodule("embeddings").named_children():
                weight = table.get_parameter("weight")
                rows, width = weight.shape
                weight.copy_(initial_rows(name, 0, rows, width, self.seed, self.std))

    def look_up(self, batch: Batch) -> dict[str, Tensor]:
        """Rows [R, W] of the distinct ids of each table, which the batch has found; it counts as a forward pass."""
        return self(batch, rows_only=True)

    def forward(self, batch: Batch, *, rows_only: bool = False) -> Any:
        """``Embedded`` of all features of ``batch``; multi-valued ones averaged over their non-zero ids."""
        return self._rows(batch.distinct, batch.distinct_on_host) if rows_only else self.embed(batch)

    def embed(self, batch: Batch, rows: dict[str, Tensor] | None = None) -> Embedded:
        """Embeddings of a batch, with the rows that ``look_up`` gave if it was called before."""
        found = self._find(self._sources(batch), batch, rows)
        # The history's fields begin with the target's: item, item side info.
        i, h, t = len(self.target), len(self.history), len(self.history) + len(self.target)
        target_BE = torch.cat([field.vectors() for field in found[h:t]], dim=-1)
        return Embedded(found[:i], found[i:h], target_BE, [field.vectors() for field in found[t:]])

    def numbers_of_ids(self, batch: Batch) -> dict[str, list[int]]:
        """Lengths of the parts, one a field, of which ``batch.place`` consists; by table."""
        numbers: dict[str, list[int]] = {name: [] for name in self.tables}
        for feature, ids in self._sources(batch):
            numbers[str(feature.table)].append(ids.numel())
        return numbers

    def _sources(self, batch: Batch) -> list[tuple[Feature, Tensor]]:
        history = batch.items | batch.history
        return (
            [(feature, history[feature.name]) for feature in self.history]
            + [(feature, batch.target[feature.name]) for feature in self.target]
            + [(feature, batch.context[feature.name]) for feature in self.context]
        )

    def _find(self, sources: list[tuple[Feature, Tensor]], batch: Batch, rows: dict[str, Tensor] | None) -> list[Found]:
        by_table: dict[str, list[int]] = {name: [] for name in self.tables}
        for position, (feature, _) in enumerate(sources):
            by_table[str(feature.table)].append(position)
        distinct, place, on_host = batch.distinct, batch.place, batch.distinct_on_host
        if not distinct and rows is None:
            pairs = {
                name: torch.unique(torch.cat([sources[p][1].flatten() for p in places]), return_inverse=True)
                for name, places in by_table.items()
            }
            distinct = {name: pair[0].long() for name, pair in pairs.items()}
            place = {name: pair[1].int() for name, pair in pairs.items()}
            on_host = {}
        found: list[Found | None] = [None] * len(sources)
        for name, rows_RW in (rows or self._rows(distinct, on_host)).items():
            places = by_table[name]
            parts = place[name].split([sources[p][1].numel() for p in places])
            for position, part in zip(places, parts, strict=True):
                ids = sources[position][1]
                found[position] = Found(rows_RW, part.view_as(ids), average_weights(ids))
        return [field for field in found if field is not None]

    def _rows(self, distinct: dict[str, Tensor], on_host: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows of the distinct ids of each table."""
        found = {}
        for key, collection in self.collections.items():
            names = [name for name, table in self.tables.items() if f"width_{table.width}" == key]
            answer = collection(self._jagged(names, distinct, on_host))
            found |= {name: _computable(answer[name].values()) for name in names}
        return found

    def _jagged(self, names: list[str], ids: dict[str, Tensor], on_host: Mapping[str, Tensor]) -> SortedIds:
        """One key per table, its ids spread evenly over ``stride`` bags, over which FBGEMM's kernels run."""
        counts = [ids[name].shape[0] for name in names]
        values = torch.cat([ids[name] for name in names]) if len(names) > 1 else ids[names[0]]
        offsets = offsets_of_bags(counts, self.stride, values.device)
        return SortedIds(on_host, names, values, offsets=offsets, stride=self.stride, length_per_key=counts)


def offsets_of_bags(counts: list[int], stride: int, device: torch.device) -> Tensor:
    """Int64 [keys * stride + 1] offsets that spread ``counts`` ids of each key evenly over ``stride`` bags.

    Made on the host, which knows the numbers, and sent without waiting.
    """
    bag = np.arange(stride)
    lengths = [count // stride + (bag < count % stride) for count in counts]
    # In page-locked memory from the beginning: a copy to there takes the host longer than all else here.
    offsets = torch.empty(len(counts) * stride + 1, dtype=torch.int64, pin_memory=device.type != "cpu")
    np.cumsum(np.concatenate([[0], *lengths]), out=offsets.numpy())
    return offsets.to(device, non_blocking=True)


def _config(table: Table) -> EmbeddingConfig:
    return EmbeddingConfig(
        name=table.name, embedding_dim=table.width, num_embeddings=table.rows, feature_names=[table.name]
    )


def _computable(rows_NW: Tensor) -> Tensor:
    """Rows in half precision as float32, unless autocast chooses the type of what follows."""
    return rows_NW if torch.is_autocast_enabled(rows_NW.device.type) else rows_NW.float()


def average_weights(ids: Tensor) -> Tensor | None:
    """Float32 weights that average the K ids of a row that are not 0; ``None`` for single values."""
    if ids.dim() == 1:
        return None
    known_NK = (ids != 0).float()
    return known_NK / known_NK.sum(1, keepdim=True).clamp(min=1.0)
