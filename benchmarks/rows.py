"""A table that survives a failing measurement: each row is tried alone, printed and written as soon as it is there."""

from __future__ import annotations

import json
import platform
import sys
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, str]:
    """What a figure must name."""
    found = {"date": date.today().isoformat(), "torch": torch.__version__, "python": platform.python_version()}
    if torch.cuda.is_available():
        import triton

        return {"device": torch.cuda.get_device_name(), "triton": triton.__version__, **found}
    return {"device": f"CPU {platform.machine()}, {torch.get_num_threads()} threads", **found}


class Rows:
    """Rows of a table by label.

    Args:
        out: folder for ``NAME.json`` and ``NAME.md``; ``None`` only prints.
        name: of the files.
        title: of the page.
        seconds: start nothing new after so many.
    """

    def __init__(self, out: Path | None, name: str, title: str, seconds: float) -> None:
        self.out, self.name, self.title, self.seconds = out, name, title, seconds
        self.rows: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []
        self.machine = machine()
        self.began = time.perf_counter()
        print(self.machine, flush=True)

    def attempt(self, label: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Measure one row; an error becomes its content, and ``None`` is returned."""
        elapsed = time.perf_counter() - self.began
        found = None
        try:
            if elapsed > self.seconds:
                raise TimeoutError(f"not begun: {elapsed:.0f} s of {self.seconds:.0f} are over")
            found = work()
        except Exception as error:
            first = next(iter(str(error).splitlines()), "")[:200]
            self.rows[label] = {"failed": f"{type(error).__name__}: {first}"}
            if not isinstance(error, TimeoutError):
                traceback.print_exc()
        else:
            self.rows[label] = found
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"[{time.perf_counter() - self.began:5.0f} s] {label:58s} {shown(self.rows[label])}", flush=True)
        self.write()
        return found

    def note(self, line: str) -> None:
        """A line below the table."""
        self.notes.append(line)
        print(line, flush=True)
        self.write()

    def write(self) -> None:
        """All rows so far."""
        if self.out is None:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        found = {"machine": self.machine, "arguments": sys.argv[1:], "rows": self.rows, "notes": self.notes}
        (self.out / f"{self.name}.json").write_text(json.dumps(found, indent=1) + "\n")
        (self.out / f"{self.name}.md").write_text("\n".join(self._page()) + "\n")

    def _page(self) -> list[str]:
        columns = list(dict.fromkeys(column for row in self.rows.values() for column in row))
        head = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        lines = [f"# {self.title}", "", f"`{' '.join(['python', *sys.argv])}`; {head}.", ""]
        lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for label, row in self.rows.items():
            lines.append(f"| {label} | {' | '.join(cell(row.get(column, '')) for column in columns)} |")
        return [*lines, "", *(f"* {note}" for note in self.notes)]


def cell(value: Any) -> str:
    """Four digits of a float."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shown(row: dict[str, Any]) -> str:
    """One line."""
    return "  ".join(f"{key} {cell(value)}" for key, value in row.items())
