"""A record of what a program did to the files of a folder, and every state that a power cut may leave of it.

Contents last from the ``fsync`` of a file on, names from the ``fsync`` of the folder on. What came later may be there
as a whole, up to any point, without any one of its steps, or, of contents, as zeros or as anything at all.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Files = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Step:
    """A call: what it did, to which file (by number), name, place and data."""

    kind: str
    file: int = 0
    name: str = ""
    at: int = 0
    data: bytes = b""
    other: str = ""


@dataclass(frozen=True)
class Mark:
    """Between two calls: the program has been told of this many operations, and has acknowledged so many."""

    issued: int
    acknowledged: int


class Recorder:
    """Passes calls on and notes those that change ``folder``; what is there already is taken for durable."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.steps = folder, list[Step | Mark]()
        self._files: dict[int, tuple[int, int]] = {}
        self._names: dict[str, int] = {}
        self._numbers, self._guard = itertools.count(1), threading.RLock()
        self._calls: dict[str, Callable[..., Any]] = {}
        self.before = tuple((path.name, path.read_bytes()) for path in folder.iterdir() if path.name != "LOCK")
        for name, _ in self.before:
            self._names[name] = next(self._numbers)
        self.first = dict(self._names)
        for name in ("open", "close", "write", "lseek", "ftruncate", "fsync", "fdatasync", "replace", "unlink"):
            self._calls[name] = getattr(os, name)
            patch.setattr(os, name, self._wrapped(name))

    def mark(self, issued: int, acknowledged: int) -> None:
        with self._guard:
            self.steps.append(Mark(issued, acknowledged))

    def _wrapped(self, name: str) -> Callable[..., Any]:
        call, note = self._calls[name], getattr(self, "_" + name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            with self._guard:
                result = call(*arguments, **options)
                note(result, *arguments)
                return result

        return wrapped

    def _inside(self, path: Any) -> bool:
        return Path(path).parent == self.folder and Path(path).name != "LOCK"

    def _open(self, file: int, path: Any, flags: int, *_: Any) -> None:
        if Path(path) == self.folder:
            self._files[file] = (0, 0)
        elif self._inside(path) and flags & (os.O_WRONLY | os.O_RDWR):
            name = Path(path).name
            if name not in self._names:
                self._names[name] = next(self._numbers)
                self.steps.append(Step("create", self._names[name], name))
            elif flags & os.O_TRUNC:
                self.steps.append(Step("truncate", self._names[name]))
            self._files[file] = (self._names[name], 0)

    def _close(self, _: Any, file: int) -> None:
        self._files.pop(file, None)

    def _write(self, written: int, file: int, data: Any) -> None:
        if file in self._files:
            number, at = self._files[file]
            self.steps.append(Step("write", number, at=at, data=bytes(memoryview(data).cast("B")[:written])))
            self._files[file] = (number, at + written)

    def _lseek(self, at: int, file: int, *_: Any) -> None:
        if file in self._files:
            self._files[file] = (self._files[file][0], at)

    def _ftruncate(self, _: Any, file: int, size: int) -> None:
        if file in self._files:
            self.steps.append(Step("truncate", self._files[file][0], at=size))

    def _fsync(self, _: Any, file: int) -> None:
        if file in self._files:
            self.steps.append(Step("sync" if self._files[file][0] else "sync names", self._files[file][0]))

    _fdatasync = _fsync

    def _replace(self, _: Any, old: Any, new: Any) -> None:
        if self._inside(new):
            self._names[Path(new).name] = self._names.pop(Path(old).name)
            self.steps.append(Step("rename", name=Path(old).name, other=Path(new).name))

    def _unlink(self, _: Any, path: Any, **__: Any) -> None:
        if self._inside(path):
            del self._names[Path(path).name]
            self.steps.append(Step("unlink", name=Path(path).name))


def _changed(data: bytes, step: Step) -> bytes:
    if step.kind == "truncate":
        return data[: step.at].ljust(step.at, b"\0")
    return data[: step.at].ljust(step.at, b"\0") + step.data + data[step.at + len(step.data) :]


def _named(names: dict[str, int], steps: list[Step]) -> dict[str, int]:
    names = dict(names)
    for step in steps:
        if step.kind == "create":
            names[step.name] = step.file
        elif step.name in names:
            number = names.pop(step.name)
            if step.kind == "rename":
                names[step.other] = number
    return names


@dataclass
class Disk:
    """What is durable, and what has been done since."""

    names: dict[str, int]
    contents: dict[int, bytes]
    naming: list[Step] = field(default_factory=list)
    writing: dict[int, list[Step]] = field(default_factory=dict)

    @classmethod
    def before(cls, recorder: Recorder) -> Disk:
        return cls(recorder.first, {recorder.first[name]: data for name, data in recorder.before})

    def do(self, step: Step) -> None:
        if step.kind in ("write", "truncate"):
            self.writing.setdefault(step.file, []).append(step)
        elif step.kind == "sync":
            self.contents[step.file] = self._whole(step.file)
            self.writing.pop(step.file, None)
        elif step.kind == "sync names":
            self.names, self.naming = _named(self.names, self.naming), []
        else:
            self.naming.append(step)

    def _whole(self, number: int, leave_out: int = -1) -> bytes:
        data = self.contents.get(number, b"")
        for position, step in enumerate(self.writing.get(number, ())):
            data = data if position == leave_out else _changed(data, step)
        return data

    def now(self) -> Files:
        """As programs see it."""
        names = _named(self.names, self.naming)
        return tuple(sorted((name, self._whole(number)) for name, number in names.items()))

    def after_power_cut(self) -> Iterator[Files]:
        """All states that may be found; some come more than once."""
        every = range(len(self.naming))
        kept = [self.naming[:end] for end in every] + [[*self.naming[:at], *self.naming[at + 1 :]] for at in every]
        for steps in [*kept, self.naming]:
            names = _named(self.names, steps)
            choices = [self._found(number) for number in names.values()]
            for contents in itertools.product(*choices):
                yield tuple(sorted(zip(names, contents)))

    def _found(self, number: int) -> list[bytes]:
        old, new, steps = self.contents.get(number, b""), self._whole(number), self.writing.get(number, [])
        if not steps:
            return [old]
        half = (len(old) + len(new)) // 2
        torn = new[:half] if len(new) > len(old) else old[:half]
        zeros, garbage = old[: len(new)].ljust(len(new), b"\0"), old[: len(new)].ljust(len(new), b"\xa5")
        return list(dict.fromkeys([old, new, torn, zeros, garbage, self._whole(number, leave_out=0)]))
