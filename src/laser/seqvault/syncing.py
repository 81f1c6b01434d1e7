"""When appended records become durable."""

from __future__ import annotations

import threading
from typing import Literal, get_args

from laser.seqvault.log import LogWriter

Sync = Literal["always", "interval", "none"]
INTERVAL_SECONDS = 0.01


class Syncer:
    """Makes a log durable by policy; see ``SeqVault.open``.

    Raises:
        ValueError: on an unknown policy.
    """

    def __init__(self, sync: Sync) -> None:
        if sync not in get_args(Sync):
            raise ValueError(f"sync is {sync!r}; expected one of {', '.join(get_args(Sync))}")
        self._policy = sync
        self._log: LogWriter | None = None
        self._work, self._ended = threading.Event(), threading.Event()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        if sync == "interval":
            self._thread = threading.Thread(target=self._run, name="seqvault-sync", daemon=True)
            self._thread.start()

    def follow(self, log: LogWriter) -> None:
        """From now on sync this log."""
        with self._guard:
            self._log = log

    def wrote(self) -> None:
        """Called after each record."""
        if self._policy == "always":
            assert self._log is not None
            self._log.sync()
        elif self._policy == "interval" and not self._work.is_set():
            self._work.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._work.wait()
            self._work.clear()
            with self._guard:
                if self._log is not None and self._log.file >= 0 and not self._log.failed:
                    try:
                        self._log.sync()
                    except OSError:
                        continue  # the log remembers, and refuses the next append with this reason
            self._ended.wait(INTERVAL_SECONDS)

    def stop(self) -> None:
        """End the background thread."""
        self._ended.set()
        self._work.set()
        if self._thread is not None:
            self._thread.join()
