"""Beginning with weights of another run: what fits is loaded, and what was and was not is told.

Tables may have other names, be new, or have more or fewer rows. Row i of a table must mean the same id in both data
sets, as it does when ``laser-prep add`` extended the first to the second. Optimizers begin anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from laser.train.checkpoint import live_tensors, read_facts
from laser.train.checkpoint_files import existing
from laser.train.stored_tensors import StoredTensors


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Where initial weights come from.

    Args:
        checkpoint: folder of a checkpoint, such as runs/first/checkpoints/best.ckpt.
        tables: table of the checkpoint that a table of this run starts from, where the names differ; ``null`` keeps
            the table's own initial rows.
        dense: also load all weights that are not tables.
    """

    checkpoint: str
    tables: dict[str, str | None] = field(default_factory=dict)
    dense: bool = True


@dataclass
class Outcome:
    """What was loaded, by name of the tensor in this run.

    Args:
        loaded: names of tensors that were loaded whole.
        partly: per table, rows that were loaded, rows that it has, and rows in the checkpoint.
        initial: per tensor that keeps its initial values, why.
        unused: names of the checkpoint's weights that nothing was loaded from.
    """

    loaded: list[str] = field(default_factory=list)
    partly: dict[str, dict[str, int]] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [f"{name.split('.')[-2]}: {n['loaded']} of {n['rows']} rows" for name, n in self.partly.items()]
        told = f"{len(self.loaded)} tensors loaded whole, {len(rows)} in part"
        told += f" ({', '.join(rows)})" if rows else ""
        return f"{told}, {len(self.initial)} keep initial values, {len(self.unused)} of the checkpoint not used"


def load_weights(model: nn.Module, config: WarmStart) -> Outcome:
    """Load into the weights of ``model``, whose tables are sharded; every process calls it and reads its own shards.

    Raises:
        ValueError: when there is no such checkpoint, it is damaged, a table that is named exists on neither side, or
            nothing fits.
    """
    path = existing(Path(config.checkpoint))
    read_facts(path)
    stored = StoredTensors(path)
    live = live_tensors(model, None)
    live = {name: tensor for name, tensor in live.items() if name.startswith("model.")}
    _check_names(config, live, stored)
    outcome, used = Outcome(), set()
    for name, tensor in live.items():
        source = _source(name, config)
        if source is None or source not in stored:
            outcome.initial[name] = "not asked for" if source is None else "not in the checkpoint"
            continue
        here, there = tensor.size(), stored.size(source)
        if here != there and not (is_table(name) and here[1:] == there[1:]):
            outcome.initial[name] = f"shape {tuple(here)} here, {tuple(there)} in the checkpoint"
            continue
        used.add(source)
        _on_every_rank(lambda t=tensor, s=source: _fill(stored, s, t))
        if here == there:
            outcome.loaded.append(name)
        else:
            outcome.partly[name] = {"loaded": min(here[0], there[0]), "rows": here[0], "in_checkpoint": there[0]}
    outcome.unused = [name for name in stored.names if name.startswith("model.") and name not in used]
    if not used:
        raise ValueError(f"nothing in checkpoint {path} fits this model; give model.warm_start.checkpoint another one")
    return outcome


def is_table(name: str) -> bool:
    """Whether a tensor of this name holds the rows of an embedding table."""
    return ".collections." in name and name.endswith(".weight")


def _table(name: str) -> str:
    return name.split(".")[-2]


def _source(name: str, config: WarmStart) -> str | None:
    """Name in the checkpoint of what a tensor starts from; ``None``: nothing."""
    if not is_table(name):
        return name if config.dense else None
    table = config.tables.get(_table(name), _table(name))
    return None if table is None else f"{name.removesuffix(f'{_table(name)}.weight')}{table}.weight"


def _check_names(config: WarmStart, live: dict[str, Any], stored: StoredTensors) -> None:
    here, there = ({_table(name) for name in names if is_table(name)} for names in (live, stored.names))
    for name, source in config.tables.items():
        if name not in here:
            raise ValueError(
                f"model.warm_start.tables names table {name!r}, but this run has {', '.join(sorted(here))}"
            )
        if source is not None and source not in there:
            raise ValueError(
                f"model.warm_start.tables.{name} is {source!r}, but checkpoint {config.checkpoint} has the tables "
                f"{', '.join(sorted(there))}"
            )


def _fill(stored: StoredTensors, source: str, tensor: Any) -> None:
    if not hasattr(tensor, "local_shards"):
        return stored.fill(source, tensor, (0,) * tensor.dim())
    for shard in tensor.local_shards():
        stored.fill(source, shard.tensor, shard.metadata.shard_offsets)


def _on_every_rank(action: Callable[[], None]) -> None:
    """Run ``action``; a mistake found by any process is raised on all of them."""
    mistake: ValueError | None = None
    try:
        action()
    except ValueError as error:
        mistake = error
    outcomes: list[ValueError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, mistake)
    for found in outcomes:
        if found is not None:
            raise found
