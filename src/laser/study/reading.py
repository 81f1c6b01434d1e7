"""What a study left, read back for notebooks: ``study.parquet``, and the runs that ``--pack`` kept.

Nothing of the study's file, of its data set or of its checkpoints is needed. ``study.parquet`` holds tested runs only;
learning curves and the trials of tuning lie in the packed runs.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laser.report.run_folder import RunFolder

COLUMNS = ("model", "label", "setting", "seed", "trial", "validation_auc", "auc", "gauc", "log_loss", "sequence_macs")
METRICS = ("auc", "gauc", "log_loss", "validation_auc")
KEPT = ("record.json", "metrics.csv")


@dataclass(frozen=True)
class ModelRuns:
    """A model with a setting: what each of its seeds found.

    Args:
        model: its key in the study's file.
        setting: key of the setting.
        name: label for people.
        trial: index of the trial that validation chose.
        values: of the test split by metric, and ``validation_auc``; each by seed.
        sequence_macs: multiply-accumulates of the sequence part for a sample, as computed; None when unknown.
        data: fingerprint of the data set; empty in files that were written before studies had several.
    """

    model: str
    setting: str
    name: str
    trial: int
    values: dict[str, dict[int, float]]
    sequence_macs: int | None
    data: str = ""

    @property
    def seeds(self) -> list[int]:
        """In the order of the file."""
        return list(self.values["auc"])

    def of(self, metric: str) -> list[float]:
        """A value for each seed."""
        return list(self.values[metric].values())


@dataclass(frozen=True)
class PackedRun:
    """A finished run, tested or not.

    Args:
        model: its key in the study's file.
        setting: key of the setting.
        trial: index of the trial.
        seed: of the run.
        options: of ``laser fit``, as the study set them.
        validation_auc: of the epoch that validation chose, as the choice of trials saw it.
        tested: whether it was one of the runs that are reported.
        curves: steps and values of each logged metric.
    """

    model: str
    setting: str
    trial: int
    seed: int
    options: dict[str, Any]
    validation_auc: float
    tested: bool
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(repr=False)


def read_study(path: Path | str) -> list[ModelRuns]:
    """Models of a ``study.parquet``, in its order.

    Raises:
        ValueError: when the file is missing, no table of a study, or empty.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not Parquet"
        raise ValueError(f"{path}: {reason}; expected the study.parquet that laser study writes") from None
    if lacking := [name for name in COLUMNS if name not in table.column_names]:
        raise ValueError(f"{path} has no column {lacking[0]!r}; expected the study.parquet that laser study writes")
    rows = table.select([*COLUMNS, *(name for name in ("data",) if name in table.column_names)]).to_pylist()
    if not rows:
        raise ValueError(f"{path} has no rows: no run of this study was tested yet; laser study goes on with it")
    several = len({row["setting"] for row in rows}) > 1
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["setting"]), []).append(row)
    return [_model_runs(group, several) for group in groups.values()]


def _model_runs(rows: list[dict[str, Any]], several: bool) -> ModelRuns:
    first = rows[0]
    name = f"{first['label']}, {first['setting']}" if several else first["label"]
    values = {metric: {row["seed"]: row[metric] for row in rows} for metric in METRICS}
    return ModelRuns(
        first["model"], first["setting"], name, first["trial"], values, first["sequence_macs"], first.get("data", "")
    )


def read_runs(path: Path | str) -> list[PackedRun]:
    """All finished runs of a folder of ``laser study``, or of the file that ``--pack`` made of it.

    Raises:
        ValueError: when there are none.
    """
    path = Path(path)
    if path.is_dir():
        return _runs_of(path)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(path) as file:
                small = [member for member in file if Path(member.name).name in KEPT and member.isfile()]
                file.extractall(folder, small, filter="data")
        except (OSError, tarfile.TarError) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else "no tar file"
            raise ValueError(f"{path}: {reason}; expected what laser study --pack wrote, or its folder") from None
        return _runs_of(Path(folder), named=path)


def _runs_of(folder: Path, named: Path | None = None) -> list[PackedRun]:
    records = sorted((folder / "runs").glob("*/record.json"))
    contents = [(record.parent, json.loads(record.read_text())) for record in records]
    runs = [_packed_run(run, content) for run, content in contents if "validation" in content]
    if not runs:
        raise ValueError(f"{named or folder} holds no finished run in runs/; expected results of laser study")
    return runs


def _packed_run(folder: Path, record: dict[str, Any]) -> PackedRun:
    chosen_by = record.get("first_validation", record["validation"])
    names = ("model", "setting", "trial", "seed", "options")
    curves = RunFolder(folder).curves() if (folder / "metrics.csv").exists() else {}
    return PackedRun(
        **{name: record[name] for name in names},
        validation_auc=chosen_by["auc"],
        tested=bool(record.get("tested")),
        curves=curves,
    )
