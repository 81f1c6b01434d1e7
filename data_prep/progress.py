"""Progress bars with an estimate on a terminal; in a log file a line now and then, none for a short job."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

POLL_SECONDS = 0.25
LOG_SECONDS = 30.0


class Stages:
    """One bar per stage of a job, drawn on standard error when it is a terminal.

    Args:
        query_progress: returns the share (0 to 100) of the query that the engine runs, or a negative number.
    """

    def __init__(self, query_progress: Callable[[], float] = lambda: -1.0):
        self._query_progress = query_progress
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description:<26}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    @contextmanager
    def counted(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A stage of ``total`` rows; yields a function that adds finished rows."""
        task = self._progress.add_task(name, total=total)
        finished = 0

        def advance(rows: int) -> None:
            nonlocal finished
            finished += rows
            self._progress.update(task, advance=rows)

        with self._followed(name, lambda: 100 * finished / max(total, 1), lambda share: None):
            yield advance
        self._progress.update(task, completed=total)

    @contextmanager
    def query(self, name: str) -> Iterator[None]:
        """A stage that is one query of the engine, followed by asking the engine."""
        task = self._progress.add_task(name, total=100)
        with self._followed(name, self._query_progress, lambda share: self._progress.update(task, completed=share)):
            yield
        self._progress.update(task, completed=100)

    @contextmanager
    def _followed(self, name: str, share: Callable[[], float], draw: Callable[[float], None]) -> Iterator[None]:
        """Draw or log the share, 0 to 100, of what goes on inside."""
        done = threading.Event()
        began = time.monotonic()

        def follow() -> None:
            logged = self._progress.disable
            while not done.wait(LOG_SECONDS if logged else POLL_SECONDS):
                now = max(0.0, share())
                if logged:
                    print(_line(name, now, time.monotonic() - began), file=sys.stderr, flush=True)
                else:
                    draw(now)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _line(name: str, share: float, seconds: float) -> str:
    left = (
        f"{share:.0f} %, about {seconds * (100 / share - 1):.0f} s left" if share >= 1 else "its end cannot be told yet"
    )
    return f"laser-prep: {name} for {seconds:.0f} s: {left}"
