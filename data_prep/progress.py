"""Progress bars with an estimate on a terminal; silence elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

POLL_SECONDS = 0.25


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
        yield lambda rows: self._progress.update(task, advance=rows)
        self._progress.update(task, completed=total)

    @contextmanager
    def query(self, name: str) -> Iterator[None]:
        """A stage that is one query of the engine, followed by asking the engine."""
        task = self._progress.add_task(name, total=100)
        done = threading.Event()

        def follow() -> None:
            while not done.wait(POLL_SECONDS):
                self._progress.update(task, completed=max(0.0, self._query_progress()))

        thread = threading.Thread(target=follow, daemon=True)
        if not self._progress.disable:
            thread.start()
        try:
            yield
            self._progress.update(task, completed=100)
        finally:
            done.set()
            if thread.is_alive():
                thread.join()
