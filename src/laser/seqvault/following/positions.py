"""Where a follower is: intentions on disk, and a mark in the vault that tells which of them has come true.

Before a batch is appended, its number and the positions around it are written to a file, durably. The append itself
carries, besides the events, one of a reserved user whose timestamp is that number; a vault stores an append whole or
not at all. After a crash the newest mark therefore tells whether the last batch was stored, and the file where it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

REMEMBERED = 100
"""Intentions kept: a vault that loses its last appends in a power failure may go back by so many."""


class Positions:
    """The file of intentions of one follower, locked while it runs.

    Args:
        path: of the file; made if missing.

    Raises:
        ValueError: when another follower uses it, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} for the state {path.name}; make it, or name another")
        self._lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ValueError(f"another follower runs with the state {path}; stop it, or name another file") from None
        self._intentions: list[dict[str, Any]] = []
        if path.exists():
            try:
                self._intentions = json.loads(path.read_text())["intentions"]
            except (ValueError, KeyError, TypeError):
                os.close(self._lock)
                raise ValueError(
                    f"{path} is no state of a follower; restore it, or remove it and give a start"
                ) from None

    def after(self, number: int) -> Any:
        """The position that follows batch ``number``, the newest that the vault has; 0 for none.

        Raises:
            ValueError: when the file does not know.
        """
        for intention in self._intentions:
            if intention["number"] == number:
                return intention["end"]
            if intention["number"] == number + 1:
                return intention["start"]
        if number == 0 and not self._intentions:
            return None
        raise ValueError(
            f"the vault has followed up to batch {number}, of which {self._path} knows nothing; give the file that "
            f"belongs to this vault, or say where to go on"
        )

    def intend(self, number: int, start: Any, end: Any) -> None:
        """Write down that batch ``number``, from ``start`` to ``end``, is about to be appended.

        Raises:
            OSError: when that cannot be made durable.
        """
        earlier = [intention for intention in self._intentions if intention["number"] < number]
        self._intentions = [*earlier, {"number": number, "start": start, "end": end}][-REMEMBERED:]
        temporary = self._path.with_name(self._path.name + ".tmp")
        with temporary.open("w") as file:
            json.dump({"intentions": self._intentions}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Let another follower use the file."""
        os.close(self._lock)
