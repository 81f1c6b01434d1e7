"""One file that many processes write together: each its own part, which the first process merges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PartFiles:
    """Where the parts of a Parquet file lie: beside it, hidden, named by process.

    Args:
        path: the file.
        rank: of this process.
        processes: their number.
    """

    path: Path
    rank: int
    processes: int

    @property
    def own(self) -> Path:
        """Part of this process."""
        return self._part(self.rank)

    def begin(self) -> None:
        """Remove what a killed run may have left in this process's place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.own.unlink(missing_ok=True)

    def written(self) -> list[Path]:
        """Parts of all processes that had something to write, in rank order."""
        return [part for rank in range(self.processes) if (part := self._part(rank)).exists()]

    def finish(self, merged: Path) -> None:
        """Put the merged file in its place and remove the parts."""
        merged.replace(self.path)
        for part in self.written():
            part.unlink()

    @property
    def temporary(self) -> Path:
        """Where to merge to."""
        return self.path.with_name(f"{self.path.name}.tmp")

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.stem}.{rank}.parquet")
