"""Learning rates over a run: a linear warm-up, then constant or falling, for tables and dense parameters alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What follows the warm-up.

    Args:
        shape: "constant" stays; "cosine" and "linear" fall to the final fraction at the end, and stay there.
        steps: step of the end, counted from the beginning of the run; null takes all steps that the trainer is to do
            (``max_epochs``, ``max_steps``), so that a run which goes on with more epochs has another schedule.
        final_fraction: of the learning rates, at the end.
    """

    shape: Literal["constant", "cosine", "linear"] = "constant"
    steps: int | None = None
    final_fraction: float = 0.0

    def check(self, warm_up_steps: int) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: when the end lies within the warm-up, or the final fraction is not in [0, 1].
        """
        if not 0.0 <= self.final_fraction <= 1.0:
            raise ValueError(f"model.schedule.final_fraction is {self.final_fraction}; expected a number in [0, 1]")
        if self.steps is not None and self.steps <= warm_up_steps:
            raise ValueError(
                f"model.schedule.steps is {self.steps}, but the warm-up alone takes model.warm_up_steps "
                f"{warm_up_steps}; give the step at which the learning rates are to reach their end"
            )

    def falling(self, progress: float) -> float:
        """Factor of the learning rates at ``progress`` in [0, 1] between the end of the warm-up and the end."""
        if self.shape == "constant":
            return 1.0
        left = 1.0 - progress if self.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.final_fraction + (1.0 - self.final_fraction) * left


def learning_rate_factor(schedule: Schedule, warm_up_steps: int, end: float) -> Callable[[int], float]:
    """Factor of the learning rates as a function of the steps done.

    Args:
        schedule: what follows the warm-up.
        warm_up_steps: rates rise linearly from ``1 / warm_up_steps`` of their value to all of it.
        end: step at which the final fraction is reached.
    """

    def factor(step: int) -> float:
        rising = min(1.0, (step + 1) / max(warm_up_steps, 1))
        progress = (step - warm_up_steps) / max(end - warm_up_steps, 1)
        return rising * schedule.falling(min(max(progress, 0.0), 1.0))

    return factor


def build_schedule(
    optimizer: Optimizer, schedule: Schedule, warm_up_steps: int, all_steps: Callable[[], float]
) -> LambdaLR:
    """The scheduler of a run, stepped with every batch.

    Args:
        optimizer: all its groups follow the schedule.
        schedule: what follows the warm-up.
        warm_up_steps: as above.
        all_steps: steps that the trainer is to do; asked only where they are needed.

    Raises:
        ValueError: as ``Schedule.check``, and when the schedule needs an end and the trainer has none.
    """
    schedule.check(warm_up_steps)
    end = float(schedule.steps or 0)
    if schedule.shape != "constant" and schedule.steps is None:
        end = all_steps()
        if not math.isfinite(end):
            raise ValueError(
                f"model.schedule.shape is {schedule.shape} and model.schedule.steps is null, but the trainer has no "
                "end; set model.schedule.steps, or trainer.max_epochs or max_steps"
            )
    return LambdaLR(optimizer, learning_rate_factor(schedule, warm_up_steps, end))
