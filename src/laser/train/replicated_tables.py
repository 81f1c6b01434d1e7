"""data_parallel tables: whole on every process, with the arithmetic of the fused optimizers.

TorchRec's own data_parallel leaves a table to an ordinary optimizer, and pools on the CPU where it should not. Here
each process looks its own ids up and nothing is exchanged for it; at the end of a step the gradients of whole tables
are added up over the processes, and every process makes the same update. Rows that no process looked up have a gradient
of zero, for which updates of SGD and Adagrad are zero: the result is that of the fused kernels, which touch rows of the
batch only. What does depend on which rows were looked up (Adam, weight decay) is refused (``laser.train.refusals``).

Legend of shape suffixes: N ids of this process; R rows of a table; W embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import embedding

from laser.versions import check_triple

check_triple()

from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType  # noqa: E402
from torchrec.distributed.sharding.dp_sequence_sharding import DpSequenceEmbeddingDist  # noqa: E402
from torchrec.distributed.sharding.dp_sharding import BaseDpEmbeddingSharding, DpSparseFeaturesDist  # noqa: E402
from torchrec.optim.fused import EmptyFusedOptimizer, FusedOptimizer, FusedOptimizerModule  # noqa: E402

STATE_WIDTH = {EmbOptimType.EXACT_SGD: None, EmbOptimType.EXACT_ROWWISE_ADAGRAD: 1, EmbOptimType.EXACT_ADAGRAD: 2}
"""Dimensions of an optimizer's state of a table; ``None``: it has none."""


class ReplicatedOptimizer(FusedOptimizer):
    """Updates whole tables alike on every process; its state has the names that FBGEMM's has.

    Args:
        weights: float32 [R, W], by table.
        options: arguments that FBGEMM's fused optimizers of the other tables are given.
    """

    def __init__(self, weights: dict[str, nn.Parameter], options: dict[str, Any]) -> None:
        self.eps, self.clip = options["eps"], options.get("max_gradient")
        dimensions = STATE_WIDTH[options["optimizer"]]
        self.rowwise = dimensions == 1
        state: dict[Any, Any] = {weight: {} for weight in weights.values()}
        for name, weight in weights.items() if dimensions else ():
            state[weight][f"{name}.momentum1"] = torch.zeros(weight.shape[:dimensions], device=weight.device)
        groups = [{"params": list(weights.values()), "lr": options["learning_rate"]}]
        super().__init__({f"{name}.weight": weight for name, weight in weights.items()}, state, groups)

    def step(self, closure: Any = None) -> None:
        """Nothing: as of all fused optimizers, it only says that the learning rate may have changed."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Nothing: ``update`` takes the gradients away."""

    @torch.no_grad()
    def update(self) -> None:
        """Add up the gradients of all processes and change the rows; collective."""
        (group,) = self.param_groups
        weights: list[nn.Parameter] = group["params"]
        count = dist.get_world_size()
        # As TorchRec: a process's part is divided before it is clipped, and added up after.
        parts = [torch.zeros_like(w) if w.grad is None else w.grad / count for w in weights]
        if self.clip is not None:
            parts = [part.clamp_(-self.clip, self.clip) for part in parts]
        whole = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(whole)
        for weight, gradient in zip(weights, whole.split([w.numel() for w in weights]), strict=True):
            weight.grad = None
            self._change(weight, gradient.view_as(weight), group["lr"])

    def _change(self, weight_RW: Tensor, gradient_RW: Tensor, rate: float) -> None:
        for sums in self.state[weight_RW].values():
            squares_RW = gradient_RW.square()
            sums.add_(squares_RW.mean(dim=1) if self.rowwise else squares_RW)
            root = sums.sqrt().add_(self.eps)
            gradient_RW = gradient_RW / (root[:, None] if self.rowwise else root)
        weight_RW.sub_(rate * gradient_RW)


class ReplicatedLookup(nn.Module, FusedOptimizerModule):
    """Look-ups of one process in its own copies of tables.

    Args:
        tables: TorchRec's description of each.
        device: of this process.
    """

    _emb_modules = ()
    """No kernels of FBGEMM (``laser.train.sharding.fused_kernels``)."""

    def __init__(self, tables: list[Any], device: torch.device) -> None:
        super().__init__()
        options = tables[0].fused_params
        self.output = options.get("output_dtype", SparseType.FP32).as_dtype()
        self.weights: dict[str, Any] = {
            table.name: nn.Parameter(torch.zeros(table.local_rows, table.local_cols, device=device)) for table in tables
        }
        for weight in self.weights.values():
            weight._in_backward_optimizers = [EmptyFusedOptimizer()]  # the mark of what no other optimizer may own
        self.optimizer = ReplicatedOptimizer(self.weights, options)

    @property
    def module(self) -> ReplicatedLookup:
        """Itself: ShardedEmbeddingCollection unwraps what it would have wrapped in DDP."""
        return self

    @property
    def fused_optimizer(self) -> ReplicatedOptimizer:
        """The optimizer of these tables."""
        return self.optimizer

    def named_parameters_by_table(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Weights by table."""
        yield from self.weights.items()

    def rows(self, ids: Mapping[str, Tensor], on_host: Mapping[str, Tensor], stride: int) -> dict[str, Tensor]:
        """As ``laser.train.exchange.Exchange.rows``, of this process's copies."""
        return {name: embedding(ids[name], weight).to(self.output) for name, weight in self.weights.items()}

    def flush(self) -> None:
        """No cache to write back."""

    def purge(self) -> None:
        """No cache to empty."""


class ReplicatedSharding(BaseDpEmbeddingSharding):
    """Parts of a sharded collection for its data_parallel tables."""

    def create_input_dist(self, device: torch.device | None = None) -> DpSparseFeaturesDist:
        """No exchange."""
        return DpSparseFeaturesDist()

    def create_lookup(
        self, device: torch.device | None = None, fused_params: Any = None, feature_processor: Any = None
    ) -> Any:
        """Look-ups in this process's copies."""
        return ReplicatedLookup(self.embedding_tables(), device or self._device or torch.device("cpu"))

    def create_output_dist(self, device: torch.device | None = None) -> DpSequenceEmbeddingDist:
        """No exchange."""
        return DpSequenceEmbeddingDist()
