"""One writer at a time: an advisory lock on a file, released by the system when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class WriterLock:
    """Held from construction to ``release``.

    Raises:
        ValueError: when another process (or another object of this one) holds it, or there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "LOCK"
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"no vault at {folder}: there is no such folder; create one first") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise ValueError(
                f"the vault at {folder} is open for writing in process {owner}; close it there, or open with mode 'r'"
            ) from None
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let the next writer in."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
