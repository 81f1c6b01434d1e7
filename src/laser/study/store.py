"""Results of runs, small enough to be carried about: no checkpoints, predictions rounded, rows written once.

    OUT/runs/KEY/          record.json, config.yaml, metrics.csv, metrics.json, throughput.json, ranks.json, gates.json,
                           log.txt, logits.parquet
    OUT/rows/NAME.parquet  row, user, label, history_length of the test split: the same for all runs of a setting
    OUT/failed/KEY/        record.json, log.txt
    OUT/work/KEY/          folders of runs, with checkpoints: stay on the machine
    OUT/STUDY/             tables, plots and report of a study

Legend of shape suffixes: N rows of the test split.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FITTED = "checkpoints/fitted"
"""File of a run's folder that says that training has ended, so that a run broken off later is not trained on."""
SMALL = ("config.yaml", "metrics.csv", "metrics.json", "throughput.json", "ranks.json", "gates.json", "log.txt")
LOGIT_STEPS = 256
"""Logits are kept as multiples of 1/256: about 10 bits a row. Rows become ties only within a step, so that the AUC of a
trained model changes by some 1e-6; ``metrics.json`` has the exact ones."""
LOG_BYTES = 20_000
"""How much of a log's end is kept."""
PATIENCE_SECONDS = 60.0
"""How long a study waits for another one: one that was told to stop ends its runs first, and writes its report."""


class Store:
    """Results under one folder, shared by studies: a run that two of them ask for is run once.

    Args:
        path: the folder, which need not exist.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def work(self, key: str) -> Path:
        """Folder in which a run runs."""
        return self.path / "work" / key

    def trained(self, key: str) -> bool:
        """Whether a run's training has ended here, so that testing it takes no training."""
        return (self.work(key) / FITTED).exists()

    def record(self, key: str) -> dict[str, Any] | None:
        """What a finished run found; None when it is not finished.

        Raises:
            ValueError: when it is not JSON.
        """
        file = self.path / "runs" / key / "record.json"
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError(f"{file} is not JSON; remove its folder to run it again") from None

    def metrics(self, key: str) -> dict[str, Any]:
        """``metrics.json`` of a tested run."""
        return json.loads((self.path / "runs" / key / "metrics.json").read_text())

    def keep(self, key: str) -> dict[str, Any]:
        """Copy the small files of a run that has ended well; its record appears at once or not at all."""
        work, final = self.work(key), self.path / "runs" / key
        partial = self.path / "runs" / f".{key}.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in SMALL:
            if (work / name).exists():
                _copy(work / name, partial / name)
        record = json.loads((work / "record.json").read_text())
        if "costs" not in record:
            self._keep_run(key, record, partial)
        (partial / "record.json").write_text(json.dumps(record, indent=1) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        shutil.rmtree(self.path / "failed" / key, ignore_errors=True)
        if record.get("tested"):
            shutil.rmtree(work / "checkpoints", ignore_errors=True)
            shutil.rmtree(work / "predictions", ignore_errors=True)
        return record

    def _keep_run(self, key: str, record: dict[str, Any], partial: Path) -> None:
        # What chose the trial stays, also when the run is made again on another machine: or the choice might change.
        earlier = self.record(key) or record
        record["first_validation"] = earlier.get("first_validation", earlier["validation"])
        if record["tested"]:
            predictions = self.work(key) / "predictions" / "test.parquet"
            record["rows"] = self._keep_predictions(predictions, partial / "logits.parquet")

    def keep_failure(self, key: str, facts: dict[str, Any]) -> None:
        """Keep the log of a run that failed."""
        folder = self.path / "failed" / key
        folder.mkdir(parents=True, exist_ok=True)
        _copy(self.work(key) / "log.txt", folder / "log.txt")
        (folder / "record.json").write_text(json.dumps(facts, indent=1) + "\n")

    def predictions(self, record: dict[str, Any], key: str) -> dict[str, np.ndarray]:
        """Columns row, user, label, history_length and probability of a tested run's test split.

        Raises:
            ValueError: when its files are not there.
        """
        try:
            rows = pq.read_table(self.path / "rows" / f"{record['rows']}.parquet")
            logits = pq.read_table(self.path / "runs" / key / "logits.parquet")
        except (FileNotFoundError, KeyError):
            raise ValueError(f"the predictions of {key} are not in {self.path}; remove its folder in runs/") from None
        columns = {name: rows[name].to_numpy() for name in rows.column_names}
        logit_N = logits["logit_256"].to_numpy() / LOGIT_STEPS
        return columns | {"probability": 1 / (1 + np.exp(-logit_N))}

    def _keep_predictions(self, source: Path, target: Path) -> str:
        table = pq.read_table(source)
        probability_N = table["probability"].to_numpy().astype(np.float64).clip(1e-12, 1 - 1e-12)
        logit_N = np.log(probability_N / (1 - probability_N))
        steps_N = np.rint(logit_N * LOGIT_STEPS).astype(np.int16)
        pq.write_table(pa.table({"logit_256": steps_N}), target, compression="zstd", compression_level=19)
        columns = {name: table[name].to_numpy() for name in ("row", "user", "label", "history_length")}
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(c).tobytes() for c in columns.values())).hexdigest()[:12]
        rows = self.path / "rows" / f"{digest}.parquet"
        if not rows.exists():
            rows.parent.mkdir(parents=True, exist_ok=True)
            temporary = rows.with_name(f".{digest}.{os.getpid()}")
            pq.write_table(pa.table(columns), temporary, compression="zstd", compression_level=19)
            temporary.replace(rows)
        return digest

    def pack(self, target: Path) -> int:
        """Write everything but ``work/`` as a tar file, compressed by xz; returns its bytes."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        with tarfile.open(temporary, "w:xz") as file:
            for path in sorted(self.path.iterdir()):
                if path.name not in ("work", "lock"):
                    file.add(path, path.name)
        temporary.replace(target)
        return target.stat().st_size

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only study that works in this folder.

        Raises:
            ValueError: when another one does, and does not end soon.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            if not _lock(file, 0.0):
                print(f"another study works in {self.path}; waiting {PATIENCE_SECONDS:.0f} s for it", flush=True)
                if not _lock(file, PATIENCE_SECONDS):
                    raise ValueError(f"another study works in {self.path}; wait for it, or give another --out")
            yield


def _lock(file: IO[str], seconds: float) -> bool:
    """Lock a file, which may take so long; whether it was done."""
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.2)


def _copy(source: Path, target: Path) -> None:
    if source.name != "log.txt":
        shutil.copyfile(source, target)
    elif source.exists():
        with source.open("rb") as file:
            file.seek(max(0, source.stat().st_size - LOG_BYTES))
            target.write_bytes(file.read())
