"""Where a checkpoint says that a run is, between its last step and a validation that has not ended.

Lightning takes a run that was saved after the step before a validation, or during one, past that validation: its
metrics, and the best checkpoint that they choose, would be lost. Here such a checkpoint says "at the beginning of
validation" instead, from where Lightning goes on and repeats it whole.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

LAST_STEP, VALIDATION = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"


def validation_is_due(trainer: pl.Trainer) -> bool:
    """Whether a validation follows the latest training step of a fit, and has not seen all of its batches."""
    loop = trainer.fit_loop.epoch_loop
    if trainer.validating:
        return loop.val_loop.batch_progress.current.completed < sum(trainer.num_val_batches)
    steps = loop.batch_progress.current
    ends_a_step = trainer.training and steps.completed < steps.processed  # type: ignore[attr-defined]
    fetcher = trainer.fit_loop._data_fetcher
    return ends_a_step and fetcher is not None and loop._should_check_val_fx(fetcher)


def move_to_validation(loops: dict[str, Any]) -> None:
    """Change the state of Lightning's loops in a checkpoint to "a validation begins"."""
    progress = loops["fit_loop"]
    for counts in (progress[LAST_STEP]["total"], progress[LAST_STEP]["current"]):
        counts["completed"] = counts["processed"]
    began = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress[VALIDATION] = {"total": began, "current": dict.fromkeys(began, 0), "is_last_batch": False}
