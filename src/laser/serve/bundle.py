"""A bundle: a folder with all that scoring needs, but the histories.

    bundle.json          format, model and its options, precision of the tables, versions, checksums of the other files
    schema.json          features
    weights.safetensors  weights that are not tables, float32
    tables.safetensors   embedding tables in the chosen precision
    items.safetensors    side info by item code
    ids/FEATURE.parquet  raw value -> code
    golden.json          a few requests with their histories, in codes, and what the model answers
    candidates_*.pt2     only if asked for: native code for a kind of device

Nothing else in it is code, and nothing that reads it runs any, unless native code is asked for: JSON, numbers, Parquet.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from torch import Tensor

from laser.schema import Kind, Schema
from laser.serve.ids import Codes, read_codes
from laser.serve.rows import PRECISIONS, Table
from laser.tensor_file import read_tensors
from laser.versions import recorded

FORMAT = 1
FACTS, SCHEMA, WEIGHTS, TABLES, ITEMS, IDS, GOLDEN = (
    "bundle.json", "schema.json", "weights.safetensors", "tables.safetensors", "items.safetensors", "ids",
    "golden.json",
)  # fmt: skip
COMPILED = {"cpu": "candidates_cpu.pt2", "cuda": "candidates_cuda.pt2"}
BLOCK = 1 << 24
"""Bytes that are read at once to compute a checksum."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are what was written.

    Args:
        path: its folder.
        facts: ``bundle.json``.
        schema: of the data set that the model was trained on.
    """

    path: Path
    facts: dict[str, Any]
    schema: Schema

    @classmethod
    def open(cls, path: Path | str, *, checksums: bool = True) -> Bundle:
        """Open a bundle.

        Args:
            path: its folder.
            checksums: read all files once to compare their checksums; only their sizes are compared otherwise.

        Raises:
            ValueError: when there is none, it is of another format, or a file is missing or not what was written.
        """
        path = Path(path)
        facts = _read_facts(path)
        for name, (size, crc) in facts["files"].items():
            file = path / name
            if not file.is_file():
                raise _refused(path, f"{name} is missing")
            if file.stat().st_size != size or (checksums and checksum(file) != crc):
                raise _refused(path, f"{name} is not what was written")
        schema = Schema.load(path / SCHEMA)
        if schema.fingerprint() != facts["schema"]:
            raise _refused(path, f"{SCHEMA} is not the schema that the model was trained with")
        return cls(path, facts, schema)

    def codes(self) -> dict[str, Codes]:
        """Codes of every categorical feature of users, items, events and context."""
        kinds = (Kind.USER, Kind.ITEM, Kind.EVENT_SIDE, Kind.CONTEXT)
        return read_codes(self.path / IDS, self.schema.of_kind(*kinds), self.facts["hashed"])

    def items(self) -> dict[str, np.ndarray]:
        """Side info by item code, [items] or [items, K], where it lies."""
        return {name: values.numpy() for name, values in self._tensors(ITEMS).items()}

    def weights(self) -> dict[str, Tensor]:
        """Weights that are not tables, by their names in the model."""
        return self._tensors(WEIGHTS)

    def tables(self) -> dict[str, Table]:
        """Embedding tables where they lie."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self._tensors(TABLES).items():
            table, part = name.rsplit(".", 1)
            parts.setdefault(table, {})[part] = tensor
        widths = {name: table.width for name, table in self.schema.tables.items()}
        if unknown := sorted(set(parts) - set(widths)):
            raise _refused(self.path, f"{TABLES} has table {unknown[0]!r}, which the schema does not")
        return {name: Table(found, widths[name]) for name, found in parts.items()}

    def golden(self) -> list[dict[str, Any]]:
        """Requests with histories and answers."""
        return json.loads((self.path / GOLDEN).read_text())["requests"]

    def compiled(self, device: str) -> tuple[Path, dict[str, Any]]:
        """File with native code for "cpu" or "cuda", and what it was built for.

        Raises:
            ValueError: when there is none.
        """
        found, name = self.facts.get("compiled", {}), COMPILED[device]
        if device not in found or name not in self.facts["files"]:
            raise ValueError(
                f"bundle {self.path} has no compiled code for {device}; export it with --compile {device}, or do "
                "without compiled code"
            )
        return self.path / name, found[device]

    def _tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return read_tensors(self.path / name)[0]
        except (OSError, ValueError) as error:
            raise _refused(self.path, f"{name} cannot be read: {error}") from None


def checksum(file: Path) -> int:
    """CRC-32C of a file."""
    value = 0
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            value = google_crc32c.extend(value, block)
    return value


def code_versions() -> dict[str, str]:
    """Versions of the code that writes a bundle."""
    return recorded("laser-ctr", "torch", "torchrec")


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads((path / FACTS).read_text())
        known = facts["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"no bundle at {path}; give a folder that laser export wrote") from None
    if known != FORMAT:
        raise ValueError(f"bundle {path} has format {known}, this release reads format {FORMAT}; export it again")
    wanted = {"files", "schema", "hashed", "network", "seed", "max_history", "tables", "versions"}
    if missing := sorted(wanted - facts.keys()):
        raise _refused(path, f"{FACTS} lacks {missing[0]!r}")
    if facts["tables"] not in PRECISIONS:
        raise _refused(path, f"{FACTS} names precision {facts['tables']!r}")
    return facts


def _refused(path: Path, reason: str) -> ValueError:
    return ValueError(f"bundle {path} is refused: {reason}; export it again or copy it anew")
