"""What the publisher of a data set says of it, checked against the files and against what came out.

A data set may have several editions of one layout. An edition whose files have the published sizes and checksums is
recognised before any work; its counts must then come out, and the job fails if they do not. Where nothing was
published about the files, counts that fit no edition are a warning only: it may be a part of the data, on purpose.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BLOCK = 1 << 22
CURE = "fetch the files again, or take `expected` out of the recipe for data of your own"


@dataclass(frozen=True, kw_only=True)
class ExpectedFile:
    """What is known of one file."""

    bytes: int | None = None
    """Size."""
    md5: str | None = None
    """Checksum in hexadecimal digits."""
    sha256: str | None = None
    """Checksum in hexadecimal digits."""
    rows: int | None = None
    """Rows of a Parquet file."""

    def __post_init__(self) -> None:
        if (self.bytes, self.md5, self.sha256, self.rows) == (None, None, None, None):
            raise ValueError("says nothing; give `bytes`, `md5`, `sha256` or `rows`")
        for name, digits in (("md5", 32), ("sha256", 64)):
            if (value := getattr(self, name)) is not None and len(value) != digits:
                raise ValueError(f"`{name}` is {value!r}; expected {digits} hexadecimal digits")

    def fault(self, path: Path) -> str | None:
        """What is wrong with the file, in words, or None; checksums are computed only when the size fits."""
        if not path.is_file():
            return "is missing"
        if self.bytes is not None and (found := path.stat().st_size) != self.bytes:
            return f"has {found:,} bytes, expected {self.bytes:,}"
        if self.rows is not None and (found := _rows(path)) != self.rows:
            return "is no Parquet file" if found is None else f"has {found:,} rows, expected {self.rows:,}"
        for name in ("md5", "sha256"):
            wanted = getattr(self, name)
            if wanted is not None and (digest := _digest(path, name)) != wanted.lower():
                return f"has {name} {digest}, expected {wanted.lower()}"
        return None


@dataclass(frozen=True, kw_only=True)
class Edition:
    """What is published about one edition; what is left out is not checked."""

    files: dict[str, ExpectedFile] = field(default_factory=dict)
    """Files by their path below the raw folder."""
    rows: int | None = None
    """Rows of the log."""
    users: int | None = None
    """Users with at least one accepted row."""
    items: int | None = None
    """Items with at least one accepted row, not those that stand in an item table only."""

    @property
    def counts(self) -> dict[str, int]:
        """Published counts by name."""
        known = {"rows": self.rows, "users": self.users, "items": self.items}
        return {name: count for name, count in known.items() if count is not None}


def recognise(editions: dict[str, Edition], raw: Path) -> str | None:
    """Name of the edition whose published files lie in the raw folder; None where no edition says anything of files.

    Raises:
        ValueError: when files of an edition are there but differ from what was published.
    """
    faults: dict[str, tuple[str, str]] = {}
    for name, edition in editions.items():
        found = {path: fault for path, file in edition.files.items() if (fault := file.fault(raw / path))}
        if edition.files and not found:
            return name
        if found:
            path = next((path for path, fault in found.items() if fault != "is missing"), next(iter(found)))
            faults[name] = (path, found[path])
    if not faults or len(faults) < len(editions):
        return None
    present = [name for name, (_, fault) in faults.items() if fault != "is missing"]
    name = present[0] if present else next(iter(faults))
    path, fault = faults[name]
    others = "" if len(faults) == 1 else f", nor are the files those of {', '.join(n for n in faults if n != name)}"
    raise ValueError(f"{raw / path} of {name} {fault}{others}; {CURE}")


def compare(editions: dict[str, Edition], recognised: str | None, report: dict[str, Any]) -> dict[str, Any]:
    """Compare the counts of a report with the published ones; a difference that is no error goes to standard error.

    Returns:
        For the report: ``edition`` (None when the counts fit none) and ``differences`` in words.

    Raises:
        ValueError: when the files were recognised and the counts differ.
    """
    found = {"rows": report["rows"]["read"], "users": report["users"], "items": report["items_in_log"]}
    differences = {
        name: [
            f"{count} {found[count]:,}, published {wanted:,}"
            for count, wanted in edition.counts.items()
            if found[count] != wanted
        ]
        for name, edition in editions.items()
    }
    if recognised is not None:
        if differences[recognised]:
            listed = "; ".join(differences[recognised])
            raise ValueError(f"the files are those of {recognised}, but the counts differ ({listed}); {CURE}")
        return {"edition": recognised, "differences": []}
    if fitting := [name for name, edition in editions.items() if edition.counts and not differences[name]]:
        return {"edition": fitting[0], "differences": []}
    nearest = min(differences, key=lambda name: abs((editions[name].rows or 0) - found["rows"]))
    print(f"laser-prep: counts are not those of {nearest} ({'; '.join(differences[nearest])})", file=sys.stderr)
    return {"edition": None, "differences": differences[nearest]}


def _rows(path: Path) -> int | None:
    try:
        return pq.read_metadata(path).num_rows
    except pa.ArrowInvalid:
        return None


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
