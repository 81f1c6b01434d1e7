"""``laser-prep synthetic``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.progress import Stages
from data_prep.synthetic.generating import generate
from data_prep.synthetic.world import World


def synthetic(out: Path, processes: int = 1, **parameters: Any) -> None:
    """Write a raw log whose best possible AUC is known, with its recipe.

    Args:
        out: new folder for log/, items.parquet, recipe.yaml and truth.json.
        processes: that simulate; the log does not depend on it.
    """
    world = World(**parameters)
    with Stages() as stages, stages.counted("simulating users", world.events) as advance:
        truth = generate(world, out, processes, advance)
    found = truth["test"]
    print(f"{out}: {truth['all']['events']:,} events of {world.num_users:,} users; of the last tenth of the time:")
    for length, auc in found["auc_from_last_events"].items():
        print(f"  best AUC from the last {length:>6} events: {_shown(auc)}")
    print(f"  best AUC from the whole history: {_shown(found['best_auc'])}, log-loss {found['best_log_loss']:.4f}")
    print(f"prepare it with: laser-prep run {out / 'recipe.yaml'} --out FOLDER")


def _shown(auc: float | None) -> str:
    return "undefined" if auc is None else f"{auc:.4f}"
