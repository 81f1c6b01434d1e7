"""What the leakage check found."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data_prep.recipe import SPLITS


@dataclass
class Findings:
    """Outcome of the check."""

    problems: list[str] = field(default_factory=list)
    """One sentence each; empty when all is well."""
    samples: int = 0
    """Samples compared with the whole history of their user."""
    cuts: int = 0
    """Samples whose history was read with the store's own cut in time."""
    own_events: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    """Split -> samples whose own event the store holds, at the sample's own time."""
    lengths: dict[str, np.ndarray] = field(default_factory=lambda: {split: np.zeros(1, np.int64) for split in SPLITS})
    """Split -> number of samples by history length."""

    def add(self, condition: bool | np.bool_, problem: str) -> None:
        """Note a problem once, where ``condition`` holds."""
        if condition and problem not in self.problems:
            self.problems.append(problem)
