"""What is known of a synthetic log: the best possible scores, and what is left of them with a shorter history.

Impressions are counted with their probabilities as soft labels (p positive, 1 - p negative), so that the figures are
those of the world and not of one draw of clicks, and they add up over blocks and processes.

With the last n events only, the formula lacks what lies beyond. Its output alone would be a poor score: users who are
shown a topic like it more than on average, most of all in scenarios where the ranker goes by interest more. So
the score is the mean probability of all impressions of equal output, scenario and sign of the recent evidence.

Legend of shape suffixes: S splits; H lengths of short histories; G groups of impressions; B bins of the score.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.recipe import SPLITS
from data_prep.synthetic import users
from data_prep.synthetic.world import World


class Tally:
    """Sums over impressions; ``+=`` joins those of two blocks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.short_SHG2B = np.zeros((len(SPLITS), len(world.horizons), users.GROUPS, 2, users.SHORT_BINS))
        self.whole_S2B = np.zeros((len(SPLITS), 2, users.WHOLE_BINS))
        self.sums_S6 = np.zeros((len(SPLITS), 6))

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the kernel adds to."""
        return self.short_SHG2B, self.whole_S2B, self.sums_S6

    def __iadd__(self, other: Tally) -> Tally:
        for own, added in zip(self.arrays(), other.arrays(), strict=True):
            own += added
        return self

    def describe(self) -> dict[str, Any]:
        """Content of ``truth.json``: figures of all impressions and of each split."""
        parts = {"all": slice(None)} | {split: slice(place, place + 1) for place, split in enumerate(SPLITS)}
        return {"world": self.world.to_dict()} | {name: self._figures(part) for name, part in parts.items()}

    def _figures(self, part: slice) -> dict[str, Any]:
        sums_6, whole_2B = self.sums_S6[part].sum(0), self.whole_S2B[part].sum(0)
        short = [soft_auc(by_rate(cells_G2B)) for cells_G2B in self.short_SHG2B[part].sum(0)]
        count = max(1.0, float(sums_6[users.COUNT]))
        return {
            "events": int(sums_6[users.COUNT]),
            "click_rate": float(sums_6[users.CLICKS]) / count,
            "expected_click_rate": float(sums_6[users.PROBABILITY]) / count,
            "noise_share": float(sums_6[users.NOISE]) / count,
            "share_with_evidence": float(sums_6[users.WITH_EVIDENCE]) / count,
            "best_auc": soft_auc(whole_2B),
            "best_log_loss": float(sums_6[users.ENTROPY]) / count,
            "auc_from_last_events": {str(n): auc for n, auc in zip(self.world.horizons, short, strict=True)},
        }


def by_rate(cells_G2B: np.ndarray) -> np.ndarray:
    """The cells that hold impressions, [2, cells], in rising order of their mean probability."""
    cells_2C = cells_G2B.transpose(1, 0, 2).reshape(2, -1)
    cells_2C = cells_2C[:, cells_2C.sum(0) > 0]
    return cells_2C[:, np.argsort(cells_2C[0] / cells_2C.sum(0), kind="stable")]


def soft_auc(score_2B: np.ndarray) -> float | None:
    """Area under the curve of binned scores with positive (row 0) and negative (row 1) weights; ties count half."""
    positive_B, negative_B = score_2B
    pairs = float(positive_B.sum() * negative_B.sum())
    if pairs == 0:
        return None
    below_B = np.cumsum(negative_B) - negative_B
    return float((positive_B * (below_B + negative_B / 2)).sum() / pairs)
