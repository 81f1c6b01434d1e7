"""What a preparation may use: one limit for the engine and for what Python holds beside it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
OUTSIDE = 700 << 20
"""Bytes outside the engine: interpreter and libraries, batches on their way, packing of histories."""
LEAST = 1 << 30
STRICT = 0.9
"""Share of the rest that the engine is told: it exceeds its limit by some hundredths."""
SHARE = 0.8
"""Of the machine's memory, where no limit is given."""


@dataclass(frozen=True)
class Budget:
    """Memory and threads of a job.

    Args:
        memory: limit of the whole job such as ``4GB``; ``None``: 80 % of the machine's.
        threads: of the engine; ``None``: all cores.

    Raises:
        ValueError: when the limit is not a size, or below 1 GiB.
    """

    memory: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.memory is not None and self.total < LEAST:
            raise ValueError(f"--memory {self.memory} is below the least that a preparation needs; give 1GiB or more")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads is {self.threads}; expected at least 1")

    @property
    def total(self) -> int:
        """Bytes of the whole job."""
        if self.memory is None:
            return int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", self.memory)
        if found is None or found[2].upper() not in UNITS:
            raise ValueError(f"--memory is {self.memory!r}; expected a size such as 4GB or 512MiB")
        return int(float(found[1]) * UNITS[found[2].upper()])

    @property
    def engine(self) -> int:
        """Bytes that the engine may use."""
        return max(int(STRICT * (self.total - OUTSIDE)), LEAST // 4)

    @property
    def gathering(self) -> int:
        """Bytes for samples that are gathered by user when the engine is closed."""
        return self.total // 4

    def duckdb_options(self) -> dict[str, Any]:
        """Options of a DuckDB connection within this budget."""
        options: dict[str, Any] = {"memory_limit": f"{self.engine}B"}
        return options if self.threads is None else options | {"threads": self.threads}
