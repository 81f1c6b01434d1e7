"""Hands a report to Weights & Biases, if the run was logged there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SECONDS = 30.0
"""How long Weights & Biases may take to begin."""


def hand_over(run: Path) -> bool:
    """Log ``report.html`` and the test metrics of a run as an artifact, in the group of the run.

    It goes to a run of its own, named after the one that trained, because an offline run cannot be opened again.
    Offline unless WANDB_MODE says otherwise; when the service cannot be reached that is said, and nothing else happens.

    Args:
        run: folder of the run.

    Returns:
        Whether something was logged: not without ``wandb.json``, which a run logged there leaves in its folder.
    """
    file = run / "wandb.json"
    if not file.exists() or os.environ.get("WANDB_MODE") == "disabled":
        return False
    known = json.loads(file.read_text())
    import wandb

    settings = wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True, init_timeout=SECONDS)
    settings.reinit = "create_new"  # a run that trained in this process stays as it is
    try:
        with wandb.init(
            project=known["project"],
            group=known["group"] or known["name"],
            name=f"{known['name']}-report",
            job_type="report",
            config={"trained_by": known["id"]},
            dir=str(run),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            settings=settings,
        ) as logged:
            _log(logged, run, known["id"])
    except wandb.errors.Error as error:
        reason = str(error).splitlines()[0]
        print(f"laser report: Weights & Biases cannot be reached ({reason}); the report is not logged", file=sys.stderr)
        return False
    return True


def _log(logged: Any, run: Path, trained_by: str) -> None:
    import wandb

    artifact = wandb.Artifact(f"report-{trained_by}", type="report")
    for name in ("report.html", "metrics.json", "gates.json", "config.yaml"):
        if (run / name).exists():
            artifact.add_file(str(run / name))
    logged.log_artifact(artifact)
    if (run / "metrics.json").exists():
        test = json.loads((run / "metrics.json").read_text())["test"]
        logged.summary.update({f"test/{name}": value for name, value in test.items()})
