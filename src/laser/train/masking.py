"""Are gates faithful? What becomes of a trained model's predictions when some events of each history are taken away.

If a gate near zero means that its event does not matter, taking away all silenced events must change predictions less
than taking away as many others. Events are chosen per sample, by the gates that the sample's own target gives them, so
every sample gets a history of its own.

Legend of shape suffixes: B samples; U histories; T events, packed; H heads; D width. One history a sample: U = B.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from laser.batch import Batch
from laser.data.collate import Collator
from laser.data.prepared import PreparedData
from laser.model.output import ModelOutput
from laser.train.trained import recipe_of, trained_network

Where = Literal["attention", "everywhere", "removed"]
CHOICES = ("silenced", "oldest", "random", "open")
"""Events with the smallest gates; as many of the oldest, of any, and of those with the largest gates."""


@torch.no_grad()
def masked_predictions(
    run: Path,
    data: PreparedData,
    split: str = "test",
    *,
    threshold: float = 0.05,
    share: float | None = None,
    where: Where = "attention",
    samples: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    checkpoint: str = "best",
) -> dict[str, np.ndarray]:
    """Predictions of a run on real samples, as they are and with chosen events masked.

    The number of events masked in a sample is the same for all choices: the events whose gate is below ``threshold`` in
    every head, or a ``share`` of the history. Masking an event makes its vector zero, so that others keep their ranks
    and segments; it adds nothing to its segment then, whatever its gate.

    Args:
        run: folder of the run; its network must have gates.
        data: the prepared data set that it was trained on.
        split: whose samples to use.
        threshold: below which an event counts as silenced.
        share: of the events of each history to mask, from 0 to 1, in place of those below ``threshold``.
        where: "attention" masks in the segmented attention alone; "everywhere" also in the mean of the newest events;
            "removed" takes the events out of the history: ranks and segments of older ones move.
        samples: drawn at random from the split; all of them when it has fewer.
        seed: of that draw, and of the random events.
        batch_size: samples at a time.
        checkpoint: of the run.

    Returns:
        Per sample: ``row``, ``user``, ``label``, ``history_length``, ``masked`` (number of events), ``logit``, and
        ``logit_CHOICE`` for each of ``CHOICES``.

    Raises:
        ValueError: when the run has no such network or checkpoint, or an argument is out of range.
    """
    if not 0 <= (threshold if share is None else share) <= 1 or samples < 1:
        raise ValueError(
            f"threshold is {threshold}, share {share} and samples {samples}; expected 0 to 1 and at least 1"
        )
    network = trained_network(run, data.schema, checkpoint)
    collate = Collator(data, recipe_of(run)["data"]["max_history"])
    rows, random = data.split(split), np.random.default_rng(seed)
    row_N = np.sort(random.choice(len(rows), min(samples, len(rows)), replace=False))
    found: list[dict[str, np.ndarray]] = []
    for start in range(0, len(row_N), batch_size):
        row_B = row_N[start : start + batch_size]
        batch = separate_histories(collate(rows.take(row_B), row_B, step=0, global_size=len(row_B)))
        found.append(_with_masks(network, batch, threshold, share, where, random))
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _with_masks(
    network: nn.Module, batch: Batch, threshold: float, share: float | None, where: Where, random: np.random.Generator
) -> dict[str, np.ndarray]:
    output: ModelOutput = network(batch, return_gates=True)
    if output.gates is None:
        raise ValueError(f"{type(network).__name__} has no gates; give a run of a network with gates, such as Laser")
    gate_T, off_B1 = output.gates.gate_EH.amax(1).numpy(), batch.off_U1.numpy()
    length_B = np.diff(off_B1)
    sample_T = np.repeat(np.arange(len(length_B)), length_B)
    count_B = np.bincount(sample_T[gate_T < threshold], minlength=len(length_B))
    if share is not None:
        count_B = np.floor(share * length_B).astype(np.int64)
    keys = {"silenced": gate_T, "oldest": np.arange(len(gate_T)), "random": random.random(len(gate_T)), "open": -gate_T}
    found = {
        "row": batch.row_B.numpy(),
        "user": batch.user_B.numpy(),
        "label": batch.label_B.numpy().astype(np.int8),
        "history_length": length_B,
        "masked": count_B,
        "logit": output.logit_B.numpy(),
    }
    for choice in CHOICES:
        keep_T = torch.from_numpy(~lowest(keys[choice], off_B1, count_B))
        found[f"logit_{choice}"] = without(network, batch, keep_T, where).logit_B.numpy()
    return found


def lowest(key_T: np.ndarray, off_B1: np.ndarray, count_B: np.ndarray) -> np.ndarray:
    """Bool [T]: the ``count_B`` events of each sample with the smallest keys; of equal keys the older ones."""
    length_B = np.diff(off_B1)
    sample_T = np.repeat(np.arange(len(length_B)), length_B)
    order_T = np.lexsort((key_T, sample_T))
    chosen_T = np.empty(len(key_T), bool)
    chosen_T[order_T] = np.arange(len(key_T)) - off_B1[:-1][sample_T] < count_B[sample_T]
    return chosen_T


def without(network: Any, batch: Batch, keep_T: Tensor, where: Where) -> ModelOutput:
    """Output of a network when only the events of ``keep_T``, bool [T], reach ``where``."""
    if where == "removed":
        return network(only_events(batch, keep_T))

    if where == "attention":
        hook = network.sta.register_forward_pre_hook(lambda _, given: (given[0] * keep_T[:, None], *given[1:]))
    else:
        # Dropout of events, idle in evaluation, gives the factor of each event's vector.
        hook = network.event_dropout.register_forward_hook(lambda *_: keep_T.float())
    try:
        return network(batch)
    finally:
        hook.remove()


def separate_histories(batch: Batch) -> Batch:
    """The same samples, each with a copy of its history."""
    batch = batch.by_event()
    length_B = batch.off_U1.diff()[batch.history_of_B]
    off_B1 = torch.nn.functional.pad(length_B.cumsum(0), (1, 0))
    first_B = batch.off_U1[batch.history_of_B] - off_B1[:-1]
    row_T = torch.repeat_interleave(first_B, length_B) + torch.arange(int(off_B1[-1]))
    return replace(
        batch,
        history={name: ids[row_T] for name, ids in batch.history.items()},
        off_U1=off_B1,
        age_T=batch.age_T[row_T],
        history_of_B=torch.arange(len(batch)),
        history_key_U=batch.history_key_U[batch.history_of_B],
        on_host=None,
    )


def only_events(batch: Batch, keep_T: Tensor) -> Batch:
    """The same samples with histories of the events of ``keep_T``, bool [T], alone."""
    batch = batch.by_event()
    kept_T1 = torch.nn.functional.pad(keep_T.cumsum(0), (1, 0))
    return replace(
        batch,
        history={name: ids[keep_T] for name, ids in batch.history.items()},
        off_U1=kept_T1[batch.off_U1],
        age_T=batch.age_T[keep_T],
        on_host=None,
    )
