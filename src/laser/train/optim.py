"""One optimizer for both kinds of parameters: tables, whose updates are fused into the backward pass, and the rest.

Lightning then steps, schedules and checkpoints a single optimizer. Its parameter groups are fixed, ``[tables, dense]``
(with weight decay ``[tables, decayed, not decayed]``), whatever part of the tables this process holds, so that a
checkpoint fits any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from laser.train.flat_adam import FlatAdam
from laser.train.replicated_tables import ReplicatedOptimizer
from laser.versions import check_triple

check_triple()

from fbgemm_gpu.split_embedding_configs import EmbOptimType  # noqa: E402
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode  # noqa: E402
from torchrec.optim.keyed import KeyedOptimizer  # noqa: E402

TABLE_OPTIMIZERS = {
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
    "adam": EmbOptimType.ADAM,
}


@dataclass(frozen=True, kw_only=True)
class TableOptimizer:
    """Optimizer of the embedding tables, fused into the backward pass: only rows of the batch are touched.

    Args:
        name: ``adagrad`` keeps one accumulator per value, ``rowwise_adagrad`` one per row; ``adam`` needs a GPU.
        learning_rate: after warm-up.
        eps: added to the root of the accumulator.
        initial_accumulator: starting value of Adagrad's accumulators; damps the first updates of a row.
        max_gradient: clip each value of the gradient of each look-up to this size; ``None`` does not clip. Processes
            clip their own look-ups, so that with it results depend a little on the number of processes.
        max_row_gradient: scale the gradient of each row that a process looks up to this Euclidean norm if it is
            longer; ``None`` does not. As above; where look-ups are deduplicated, of the sum over a process's look-ups.
        weight_decay: share of a row, times the learning rate, that is taken off when the row is updated (decoupled);
            for ``rowwise_adagrad`` and ``adam``.
    """

    name: Literal["adagrad", "rowwise_adagrad", "sgd", "adam"] = "adagrad"
    learning_rate: float = 0.05
    eps: float = 1e-8
    initial_accumulator: float = 0.1
    max_gradient: float | None = None
    max_row_gradient: float | None = None
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_gradient", "max_row_gradient"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"model.table_optimizer.{name} is {value}; expected a number above 0, or null")
        if self.weight_decay < 0:
            raise ValueError(f"model.table_optimizer.weight_decay is {self.weight_decay}; expected 0 or more")

    def fused_params(self) -> dict[str, Any]:
        """Arguments of FBGEMM's table-batched embedding."""
        params: dict[str, Any] = {
            "optimizer": TABLE_OPTIMIZERS[self.name],
            "learning_rate": self.learning_rate,
            "eps": self.eps,
        }
        if self.max_gradient is not None:
            params |= {"gradient_clipping": True, "max_gradient": self.max_gradient}
        if self.weight_decay:
            params["weight_decay"] = self.weight_decay
            if self.name == "rowwise_adagrad":
                params["weight_decay_mode"] = WeightDecayMode.DECOUPLE
        return params


class RowGradientClip:
    """Forward hook of a sharded collection: bounds the norm of each looked-up row's gradient.

    Args:
        norm: the bound, for a gradient of the mean loss over all samples of a step.
        world_size: number of processes, whose gradients are averaged after this point.
    """

    def __init__(self, norm: float, world_size: int) -> None:
        self.norm = norm * world_size

    def __call__(self, module: nn.Module, inputs: Any, found: dict[str, Any]) -> None:
        """Have the gradients of looked-up rows pass through."""
        for answer in found.values():
            if (rows := answer.values()).requires_grad:
                rows.register_hook(self._clip)

    def _clip(self, gradient_RW: Tensor) -> Tensor:
        norm_R1 = gradient_RW.float().norm(dim=1, keepdim=True)
        return gradient_RW * (self.norm / norm_R1.clamp(min=self.norm)).to(gradient_RW.dtype)


@dataclass(frozen=True, kw_only=True)
class DenseOptimizer:
    """Adam for everything that is not an embedding table. The paper (arXiv 2602.11562) uses betas 0.9 and 0.9999.

    Args:
        learning_rate: after warm-up.
        betas: decay of the first and second moments.
        eps: added to the root of the second moment.
        weight_decay: each step also multiplies weights, but not biases and gains of norms, by 1 - learning_rate x this
            (AdamW); 0 is Adam.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.9999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def build(
        self, parameters: Mapping[str, nn.Parameter], gradients: Callable[[], Tensor | None] = lambda: None
    ) -> Optimizer:
        """The optimizer of these parameters, by name; ``gradients`` as of ``FlatAdam``.

        Raises:
            ValueError: when ``weight_decay`` is negative.
        """
        options: dict[str, Any] = {"lr": self.learning_rate, "betas": self.betas, "eps": self.eps}
        if self.weight_decay < 0:
            raise ValueError(f"model.dense_optimizer.weight_decay is {self.weight_decay}; give 0 or more")
        if self.weight_decay == 0:
            return FlatAdam(parameters.values(), gradients, **options)
        decayed = [parameter for name, parameter in parameters.items() if is_decayed(name, parameter)]
        kept = [parameter for name, parameter in parameters.items() if not is_decayed(name, parameter)]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ]
        adam = AdamW(groups, fused=True, **options)
        create_adam_state(adam)
        return adam


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, not to biases (those per token are 2-D, too) and gains."""
    return parameter.dim() >= 2 and "bias" not in name.rpartition(".")[2]


class SparseDenseOptimizer(Optimizer):
    """Steps the dense parameters and hands the scheduled learning rate to the fused optimizers of the tables.

    ``param_groups[0]`` stands for the tables: it has no parameters, only their learning rate. The other groups are
    those of the dense optimizer, shared with it.

    Args:
        tables: fused optimizers of the sharded collections, none when the model has no tables here.
        table_learning_rate: of the tables.
        dense: optimizer of all other parameters, with its state, into which checkpoints are read before the first step.
        kernels: FBGEMM's modules whose optimizer counts steps, as Adam does.
        replicated: optimizers among ``tables`` that change whole tables at the end of a step.
        gradients: as of ``FlatAdam``.
    """

    def __init__(
        self,
        tables: Iterable[KeyedOptimizer],
        table_learning_rate: float,
        dense: Optimizer,
        kernels: Iterable[Any] = (),
        replicated: Iterable[ReplicatedOptimizer] = (),
        gradients: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        self.tables = list(tables)
        self.dense = dense
        self.kernels = list(kernels)
        self.replicated = list(replicated)
        self.gradients = gradients
        self.steps = 0
        """Training steps done; set when a checkpoint is loaded."""
        super().__init__([{"params": [], "lr": table_learning_rate}, *dense.param_groups], defaults={})
        self.state = dense.state

    def push_table_learning_rate(self) -> None:
        """Tell the fused optimizers their learning rate; it counts from the next backward pass."""
        for optimizer in self.tables:
            for group in optimizer.param_groups:
                group["lr"] = self.param_groups[0]["lr"]  # type: ignore[index]
            optimizer.step()  # a fused step only passes the learning rate on; rows change in backward

    def push_steps(self) -> None:
        """Tell the kernels how many steps were done: left alone they count evaluation, too, and forget on resuming."""
        for kernel in self.kernels:
            kernel.iter.fill_(self.steps)
            kernel.iter_cpu.fill_(self.steps)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run ``closure`` (forward and backward, which updates the tables) once and step the dense parameters."""
        self.push_table_learning_rate()
        self.push_steps()
        self.steps += 1

        def backward_and_replicated() -> Any:
            loss = closure() if closure is not None else None
            for optimizer in self.replicated:
                optimizer.update()
            return loss

        return self.dense.step(backward_and_replicated if self.replicated else closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, without the checks of PyTorch's own, which take the host longer than anything here.

        Those of a replayed step stay: the next one sets them, and any other step of a recorded network forgets them.
        """
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        if self.gradients() is not None:
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def hyper_parameters(self) -> list[dict[str, Any]]:
        """Everything in the groups but the parameters."""
        return [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]

    def load_hyper_parameters(self, groups: list[dict[str, Any]]) -> None:
        """Restore what ``hyper_parameters`` returned.

        Raises:
            ValueError: when one run has weight decay and the other has not.
        """
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f"the checkpoint has {len(groups)} groups of parameters, this run {len(self.param_groups)}; "
                "model.dense_optimizer.weight_decay is 0 in one of them: give the value that the checkpoint began with"
            )
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update(saved)


def create_adam_state(optimizer: Optimizer) -> None:
    """Give every parameter the state that Adam's first step would create."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),  # where a fused step is
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def dense_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters that no fused optimizer owns, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not hasattr(parameter, "_in_backward_optimizers")
    }


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    tables: Iterable[KeyedOptimizer],
    table: TableOptimizer,
    dense: DenseOptimizer,
    kernels: Iterable[Any] = (),
    replicated: Iterable[ReplicatedOptimizer] = (),
    gradients: Callable[[], Tensor | None] = lambda: None,
) -> SparseDenseOptimizer:
    """The optimizer of a model whose tables are sharded.

    ``parameters`` are the dense ones by name, ``kernels`` FBGEMM's modules of the tables if they must count steps,
    ``replicated`` the optimizers of tables that are whole on every process, ``gradients`` as of ``FlatAdam``.
    """
    inner = dense.build(parameters, gradients)
    return SparseDenseOptimizer(tables, table.learning_rate, inner, kernels, replicated, gradients)
