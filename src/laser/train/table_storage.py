"""How table rows are kept: number format, memory, and the format in which looked-up rows are handed on.

=============  ================================================  =========
memory         rows lie                                          devices
=============  ================================================  =========
device         beside the process: GPU memory, or RAM on a CPU   all
uvm            in host memory, which the GPU reads over the bus  GPU
uvm_caching    in host memory, recently used ones in the GPU     GPU
=============  ================================================  =========
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from laser.versions import check_triple

check_triple()

from fbgemm_gpu.split_embedding_configs import SparseType  # noqa: E402
from torchrec.distributed.embedding_types import EmbeddingComputeKernel  # noqa: E402
from torchrec.modules.embedding_configs import DataType  # noqa: E402

Precision = Literal["float32", "float16", "bfloat16"]
Memory = Literal["device", "uvm", "uvm_caching"]

VALUE_BYTES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
WEIGHTS = {"float32": DataType.FP32, "float16": DataType.FP16}
OUTPUTS = {"float32": SparseType.FP32, "float16": SparseType.FP16, "bfloat16": SparseType.BF16}
KERNELS = {
    "device": EmbeddingComputeKernel.FUSED.value,
    "uvm": EmbeddingComputeKernel.FUSED_UVM.value,
    "uvm_caching": EmbeddingComputeKernel.FUSED_UVM_CACHING.value,
}
"""Kernels that update rows in their backward pass; the dense ones would leave tables to Adam, and pool on the CPU."""


@dataclass(frozen=True, kw_only=True)
class TableStorage:
    """How one table is kept.

    Args:
        weights: format of its rows, not bfloat16, of which FBGEMM trains none; the optimizer's state is float32 always.
        memory: where rows and their state lie; ``uvm`` and ``uvm_caching`` need a GPU.
    """

    weights: Precision = "float32"
    memory: Memory = "device"


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How tables are kept.

    Args:
        default: of every table that ``tables`` does not name.
        tables: of single tables, by table name.
        outputs: format of looked-up rows and their gradients, also when they are exchanged. Gradients of a mean over a
            batch are small: float16 loses those below 6e-8, bfloat16 does not.
        cache_share: rows of a table with ``uvm_caching`` that the GPU's cache holds, as a share of all.
        stochastic_rounding: round updates of half-precision rows up or down at random, so that small ones are not
            lost; on the CPU they are rounded to the nearest.
    """

    default: TableStorage = TableStorage()
    tables: dict[str, TableStorage] = field(default_factory=dict)
    outputs: Precision = "float32"
    cache_share: float = 0.2
    stochastic_rounding: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.cache_share <= 1:
            raise ValueError(f"storage.cache_share is {self.cache_share}; expected a share above 0 and up to 1")

    def of(self, table: str) -> TableStorage:
        """Storage of one table."""
        return self.tables.get(table, self.default)

    @property
    def used(self) -> list[TableStorage]:
        """All that occur."""
        return [self.default, *self.tables.values()]

    def fused_params(self) -> dict[str, Any]:
        """Arguments of FBGEMM's table-batched embedding."""
        params: dict[str, Any] = {"output_dtype": OUTPUTS[self.outputs]}
        if any(each.weights != "float32" for each in self.used):
            params["stochastic_rounding"] = self.stochastic_rounding
        if any(each.memory == "uvm_caching" for each in self.used):
            params |= {"cache_load_factor": self.cache_share, "gather_uvm_cache_stats": True}
        return params


def check_storage(storage: Storage, device: torch.device) -> None:
    """Refuse what a device cannot do.

    Raises:
        ValueError: one sentence that names the setting and what to set instead.
    """
    for each in storage.used:
        if each.weights not in WEIGHTS:
            raise ValueError(
                f"storage.weights is {each.weights}, in which FBGEMM trains no tables, on GPU or CPU, in any memory; "
                "set it to float16 or float32"
            )
    if device.type != "cpu":
        return
    for each in storage.used:
        if each.memory != "device":
            raise ValueError(
                f"storage.memory is {each.memory}, which keeps rows of a GPU in host memory, but this process runs on "
                "the CPU, where all rows are; set it to device"
            )
    if storage.outputs == "bfloat16":
        raise ValueError("storage.outputs is bfloat16, for which FBGEMM has no CPU kernel; set it to float32")


def check_table_names(option: str, given: Iterable[str], tables: Iterable[str]) -> None:
    """Refuse tables that there are not.

    Raises:
        ValueError: naming the option and the first of them.
    """
    if unknown := sorted(set(given) - set(tables)):
        raise ValueError(
            f"{option} names {unknown[0]!r}, which is no table of the model; it has {', '.join(sorted(tables))}"
        )
