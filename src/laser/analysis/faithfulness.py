"""How much predictions change when events are masked, with intervals over users.

Legend of shape suffixes: N samples; U users; S bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from laser.report.scores import interval, scores
from laser.report.table import Table

CHOICES = {
    "silenced": "silenced",
    "oldest": "as many oldest",
    "random": "as many at random",
    "open": "as many most open",
}
REPLICATES = 1000


@dataclass(frozen=True)
class Effect:
    """What masking one choice of events does.

    Args:
        choice: key of ``CHOICES``.
        change: mean absolute change of the logit.
        change_interval: 95 %, over resampled users.
        above_silenced: mean absolute change minus that of masking the silenced events, and its 95 % interval.
        auc: of the masked predictions, of the samples looked at.
        log_loss: likewise, in nats.
    """

    choice: str
    change: float
    change_interval: tuple[float, float]
    above_silenced: tuple[float, float, float]
    auc: float
    log_loss: float


def faithfulness(masked: Mapping[str, np.ndarray], seed: int = 0) -> list[Effect]:
    """Effects of masking, from the columns of ``laser.train.masking.masked_predictions``.

    Gates are faithful when masking what they silence changes predictions less than masking as many other events: when
    the intervals of ``above_silenced`` lie above zero.

    Raises:
        ValueError: when there are no samples.
    """
    if not len(masked["user"]):
        raise ValueError("no samples to look at; ask masked_predictions for at least one")
    change_N = {choice: np.abs(masked[f"logit_{choice}"] - masked["logit"]) for choice in CHOICES}
    weight_SU, user_N = _resampled(masked["user"], seed)
    samples_S = weight_SU @ np.bincount(user_N).astype(np.float64)
    mean_S = {c: weight_SU @ np.bincount(user_N, change) / samples_S for c, change in change_N.items()}
    found = []
    for choice, change in change_N.items():
        probability_N = 1 / (1 + np.exp(-masked[f"logit_{choice}"].astype(np.float64)))
        scored = scores(probability_N, masked["label"], masked["user"])
        low, high = interval(mean_S[choice] - mean_S["silenced"])
        above = (float(change.mean() - change_N["silenced"].mean()), low, high)
        least, most = interval(mean_S[choice])
        found.append(Effect(choice, float(change.mean()), (least, most), above, scored["auc"], scored["log_loss"]))
    return found


def _resampled(user_N: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each user is drawn in each replicate [S, U], and the position of each sample's user."""
    found, position_N = np.unique(user_N, return_inverse=True)
    weight_SU = np.random.default_rng(seed).multinomial(len(found), np.full(len(found), 1 / len(found)), REPLICATES)
    return weight_SU.astype(np.float64), position_N


def effects_table(effects: list[Effect]) -> Table:
    """Effects as a table, a row per choice."""
    head = ("masked events", "mean |change of logit|", "95 %", "more than the silenced", "95 %", "AUC", "log-loss")
    rows = []
    for effect in effects:
        more, low, high = effect.above_silenced
        limits = f"{effect.change_interval[0]:.3f} to {effect.change_interval[1]:.3f}"
        difference = ("-", "-") if effect.choice == "silenced" else (f"{more:+.3f}", f"{low:+.3f} to {high:+.3f}")
        cells = (CHOICES[effect.choice], f"{effect.change:.3f}", limits, *difference)
        rows.append((*cells, f"{effect.auc:.4f}", f"{effect.log_loss:.4f}"))
    return Table(head, tuple(rows))
