"""The training task: a network, its loss, its optimizer and its metrics.

Legend of shape suffixes: B samples of this process; U distinct histories.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from laser.batch import Batch
from laser.model.embeddings import initial_rows
from laser.model.output import ModelOutput
from laser.model.rankmixer import SparseFeedForward
from laser.model.recording import RecordedNetwork
from laser.schema import Schema
from laser.train.average import Average, WeightAverage
from laser.train.gate_statistics import GateStatistics
from laser.train.gradients import clip_norm
from laser.train.loss import local_loss
from laser.train.metrics import CTRMetrics
from laser.train.optim import DenseOptimizer, TableOptimizer, build_optimizer, dense_parameters
from laser.train.recorded_sizes import restore_sizes, stored_sizes
from laser.train.schedule import Schedule, build_schedule
from laser.train.sharding import fused_kernels, replicated_tables, sharded_collections
from laser.train.warm_start import WarmStart


class CTRModule(pl.LightningModule):
    """Click-through-rate prediction with any network that maps a ``Batch`` to logits.

    Args:
        network: class of the model and its options, such as ``laser.model.laser.Laser``; it is built when the schema
            of the data set is known, and given the seed below.
        table_optimizer: of the embedding tables.
        dense_optimizer: of all other parameters.
        warm_up_steps: steps over which both learning rates rise linearly to their values.
        schedule: of both learning rates after the warm-up.
        average: evaluate with a moving average of all weights; null evaluates the weights as they are.
        seed: of initial weights; linked to ``seed_everything`` on the command line.
        warm_start: begin with weights of another run; not used when a checkpoint of this run is loaded.
        record_steps: on a GPU, record what follows the look-up of a training step and replay it (CUDA graphs), where
            the network can be recorded; it is the same computation with less work for the host.
    """

    network: nn.Module

    def __init__(
        self,
        network: Callable[[Schema], nn.Module],
        table_optimizer: TableOptimizer = TableOptimizer(),  # noqa: B008
        dense_optimizer: DenseOptimizer = DenseOptimizer(),  # noqa: B008
        warm_up_steps: int = 0,
        schedule: Schedule = Schedule(),  # noqa: B008
        average: Average | None = None,
        seed: int = 0,
        warm_start: WarmStart | None = None,
        record_steps: bool = True,
    ) -> None:
        super().__init__()
        self.build_network = network
        self.table_optimizer = table_optimizer
        self.dense_optimizer = dense_optimizer
        self.warm_up_steps = warm_up_steps
        self.schedule = schedule
        self.average = average
        self.weight_average: WeightAverage | None = None
        self.seed = seed
        self.warm_start = warm_start
        self.record_steps = record_steps
        self.recorded: RecordedNetwork | None = None
        self.layers_of_experts: list[SparseFeedForward] = []
        self.managed_ids = nn.ModuleDict()
        """Maps of ids to rows, by table; filled by the strategy."""
        self.metrics = CTRMetrics()
        self.gates = GateStatistics()
        self.keep_gates = False
        """Steps of test and predict also return the gates; set by whoever writes them (``laser.train.gate_writer``)."""
        self.validation: dict[str, float] = {}
        """Metrics of the latest validation; kept in checkpoints, so that a test can report them."""
        self.test: dict[str, float] = {}
        """Metrics of the latest test."""

    def __setattr__(self, name: str, value: Any) -> None:
        """As of any module, but for the name of the hook, which Lightning sets some fifty times a step."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def schema(self) -> Schema:
        """Of the data set that the trainer was given."""
        return self.trainer.datamodule.schema  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Build the network: tables on "meta" for the strategy to shard and fill, the rest from the seed.

        Raises:
            ValueError: when the trainer runs without the strategy that shards the tables.
        """
        if hasattr(self, "network"):
            return
        if not hasattr(self.trainer.strategy, "sharding"):
            raise ValueError(
                f"trainer.strategy is {type(self.trainer.strategy).__name__}, which does not shard embedding tables; "
                "set it to torchrec"
            )
        # Drawn on the CPU, so that a GPU run starts from the same weights.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(self.seed)
            self.network = self.build_network(self.schema, table_device="meta", seed=self.seed)  # type: ignore[call-arg]

    def initial_rows(self, table: str, start: int, stop: int, width: int) -> Tensor:
        """Initial rows of a table, the same for any sharding: float32 [stop - start, width]."""
        embeddings: Any = self.network.embeddings
        return initial_rows(table, start, stop, width, embeddings.seed, embeddings.std)

    def configure_optimizers(self) -> Any:
        """One optimizer over fixed groups [tables, dense] and the schedule of their rates, stepped with every batch."""
        collections = [collection for _, collection in sharded_collections(self)]
        fused = [collection.fused_optimizer for collection in collections]
        counting = self.table_optimizer.name == "adam"
        kernels = [kernel for collection in collections for kernel in fused_kernels(collection)] if counting else []
        replicated = [lookup.optimizer for collection in collections for lookup in replicated_tables(collection)]
        dense = dense_parameters(self)
        optimizer = build_optimizer(
            dense, fused, self.table_optimizer, self.dense_optimizer, kernels, replicated, self.flat_gradients
        )
        schedule = build_schedule(
            optimizer, self.schedule, self.warm_up_steps, lambda: self.trainer.estimated_stepping_batches
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Make room for the averages, before a checkpoint is read into them, and get ready to record steps."""
        self.recorded = None
        self.layers_of_experts = [part for part in self.network.modules() if isinstance(part, SparseFeedForward)]
        if self.record_steps and self.device.type == "cuda" and getattr(self.network, "recordable", False):
            self.recorded = RecordedNetwork(self.network, list(dense_parameters(self).values()))
        if self.average is None:
            self.weight_average = None
            return
        self.average.check(self.trainer.strategy.storage)  # type: ignore[attr-defined]
        self.weight_average = WeightAverage(self, self.average)

    def flat_gradients(self) -> Tensor | None:
        """Of all dense parameters, where a recorded step has them in one tensor; see ``laser.model.flat``."""
        return self.recorded.flat_gradients() if self.recorded is not None else None

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """As Lightning does, but in three launches where a recorded step has all gradients in one tensor."""
        flat_P = self.flat_gradients()
        if flat_P is None or not gradient_clip_val or gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip_norm(flat_P, gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and finish what belongs to it before any callback can save it."""
        super().optimizer_step(*args, **kwargs)
        for layer in self.layers_of_experts:
            # Every process knows how many experts were active in all of them: their coefficient follows it.
            dist.all_reduce(layer.activity_2)
        if self.weight_average is not None:
            self.weight_average.update(self.trainer.global_step + 1)  # this step is counted only later

    def checkpoint_facts(self) -> dict[str, Any]:
        """What a checkpoint must agree with when it is loaded."""
        return {
            "schema": self.schema.fingerprint(),
            "data_set": self.schema.name,
            "table_optimizer": self.table_optimizer.name,
            "average": self.average is not None,
            "step": self.trainer.global_step,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the metrics of the latest validation, and the sizes of the recorded step."""
        checkpoint["validation"] = self.validation
        checkpoint["recorded_sizes"] = stored_sizes(self.recorded)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        self.validation = checkpoint["validation"]
        restore_sizes(self.recorded, checkpoint.get("recorded_sizes", []))  # older checkpoints have none

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor | None]:
        """Loss of this process's share of the batch, see ``local_loss``, and its auxiliary part."""
        output = (self.recorded or self.network)(batch)
        auxiliary = output.auxiliary_loss
        loss = local_loss(output.logit_B, batch, self.trainer.world_size, auxiliary)
        if self._is_logged(batch_idx, self.trainer.global_step + 1):
            self._log_loss(loss, auxiliary, batch)
        return {"loss": loss, "auxiliary": auxiliary}

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Of a trainer that stops here loggers write this step, whichever it is."""
        if self.trainer.should_stop and not self._is_logged(batch_idx, self.trainer.global_step):
            self._log_loss(outputs["loss"], outputs["auxiliary"], batch)

    def _is_logged(self, batch_idx: int, step: int) -> bool:
        """Steps that loggers ask for, and the first of an epoch: Lightning's ``log`` takes the host a millisecond."""
        return batch_idx == 0 or step % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def _log_loss(self, loss: Tensor, auxiliary: Tensor | None, batch: Batch) -> None:
        """Mean over all processes; apart, that of the clicks and the auxiliary one."""
        shown = {"train/loss": loss.detach()}
        if auxiliary is not None:
            shown["train/auxiliary_loss"] = auxiliary.detach() * self.trainer.world_size
            shown["train/loss"] = shown["train/loss"] - shown["train/auxiliary_loss"]
        # Not by sync_dist: before it reduces, Lightning lets the host wait for the device and all processes.
        total = torch.stack(list(shown.values())) / self.trainer.world_size
        if self.trainer.world_size > 1:
            dist.all_reduce(total)
        for name, value in zip(shown, total.unbind()):
            # Not for the progress bar, for which the host would wait after each step (``laser.train.progress``).
            self.log(name, value, batch_size=batch.global_size)

    def on_validation_start(self) -> None:
        """Evaluate the averages."""
        if self.weight_average is not None:
            self.weight_average.begin_evaluation(self.trainer.global_step)

    def on_validation_end(self) -> None:
        """Train the live weights."""
        if self.weight_average is not None:
            self.weight_average.end_evaluation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect logits for the validation metrics."""
        self.metrics.update(self.network(batch).logit_B, batch.label_B, batch.user_B)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/*``: exact over all processes, so that every process decides alike on stopping and saving."""
        self.validation = self._finish("val")

    on_test_start, on_test_end = on_validation_start, on_validation_end
    on_predict_start, on_predict_end = on_validation_start, on_validation_end

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Collect metrics and gate statistics; the returned columns go to the predictions file."""
        output = self.network(batch, return_gates=True)
        self.metrics.update(output.logit_B, batch.label_B, batch.user_B)
        if output.gates is not None and len(batch):
            self.gates.update(output.gates.gate_EH, output.gates.event_off_B1, output.gates.segment_width)
        return self._step_outputs(batch, output)

    def on_test_epoch_end(self) -> None:
        """Log ``test/*``."""
        self.test = self._finish("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Columns of the predictions file."""
        return self._step_outputs(batch, self.network(batch, return_gates=self.keep_gates))

    def _step_outputs(self, batch: Batch, output: ModelOutput) -> dict[str, Any]:
        """Columns of the predictions file, and under ``gates`` the gates if they are kept."""
        outputs: dict[str, Any] = prediction_columns(batch, output.logit_B)
        return outputs | {"gates": output.gates} if self.keep_gates else outputs

    def _finish(self, stage: str) -> dict[str, float]:
        values = {name: float(value) for name, value in self.metrics.compute().items()}
        self.metrics.reset()
        shown = {"auc", "gauc", "log_loss"}
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in shown, rank_zero_only=False)
        return values


def prediction_columns(batch: Batch, logit_B: Tensor) -> dict[str, Tensor]:
    """Columns of a predictions file for the samples of a batch, one value per sample, on the host."""
    columns = {
        "row": batch.row_B,
        "user": batch.user_B,
        "timestamp": batch.timestamp_B,
        "label": batch.label_B.to(torch.int8),
        "probability": torch.sigmoid(logit_B.float()),
        "history_length": batch.off_U1.diff()[batch.history_of_B],
    }
    return {name: column.cpu() for name, column in columns.items()}


def finite(values: dict[str, float]) -> dict[str, float | None]:
    """Metrics for JSON, which has no NaN: what is not defined becomes ``None``."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
