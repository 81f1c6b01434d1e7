"""What a killed run left, used by the next one when nothing has changed since.

Finished tables of the engine and finished parts of the data set stay in the staging folder of a killed run. They are
used again when the recipe, the raw files, the engine and this program are the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_prep.file_checks import find_files
from data_prep.memory import Budget
from data_prep.recipe import Recipe
from data_prep.recipe_sources import Source

NAME = "fingerprint"
WORK = "work"
PARTS = ("vault", "samples")
"""Parts of the data set that take long to write."""
BOOT = Path("/proc/sys/kernel/random/boot_id")
PACKAGES = ("duckdb", "ibis-framework", "pyarrow")


def fingerprint(recipe: Recipe, raw: Path, engine: str) -> str:
    """Hexadecimal digits that change with anything on which the tables of a run depend.

    Raises:
        ValueError: when a file is missing.
    """
    digest = hashlib.sha256(repr((recipe, engine, [version(package) for package in PACKAGES])).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    for source in _sources(recipe):
        for path in find_files(source, raw):
            found = path.stat()
            digest.update(json.dumps([str(path.absolute()), found.st_size, found.st_mtime_ns]).encode())
    # What a power failure left may not have reached the disk.
    digest.update(BOOT.read_bytes() if BOOT.exists() else b"")
    return digest.hexdigest()


def _sources(value: Any) -> Iterator[Source]:
    if isinstance(value, Source):
        yield value
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _sources(part)


class Parts:
    """Which parts of the data set in a staging folder are complete.

    Args:
        staging: the folder; new, or what a killed run with the same fingerprint left.
        mark: the fingerprint.
        budget: memory and threads of the job.
    """

    def __init__(self, staging: Path, mark: str, budget: Budget) -> None:
        self.work = staging / WORK
        self.budget = budget
        self.resumed = self.work.exists()
        """Whether something of a killed run is used."""
        self.work.mkdir(exist_ok=True)
        (self.work / NAME).write_text(mark)
        for path in staging.iterdir():
            if path != self.work and not self._marker(path.name).exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def once(self, part: Path, write: Callable[[], None]) -> None:
        """Write a part of the data set unless that is done."""
        assert part.name in PARTS
        if not self._marker(part.name).exists():
            write()
            self._marker(part.name).touch()

    def _marker(self, name: str) -> Path:
        return self.work / f"{name}.done"


def belongs(staging: Path, mark: str) -> bool:
    """Whether a killed run left this folder and it can be used."""
    try:
        return (staging / WORK / NAME).read_text() == mark
    except (OSError, UnicodeDecodeError):
        return False
