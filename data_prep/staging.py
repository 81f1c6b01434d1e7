"""A data set is built in a hidden sibling folder and takes its place in one step, or not at all.

Each staging folder is locked by its builder for as long as the builder lives, so that what a killed run left behind
can be told from what another process is building.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2
MARKERS = ("schema.json", "report.json")
"""Files that every prepared data set has; a folder without them is never replaced."""


@contextmanager
def staged(out: Path, usable: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """A folder that replaces ``out`` when the block ends well, and vanishes when it does not.

    Args:
        out: folder to replace or to make.
        usable: whether the folder of a killed run is to be used again; otherwise the folder is fresh.

    Raises:
        ValueError: when ``out`` holds something other than a prepared data set, or another process is preparing it.
    """
    out = Path(os.path.abspath(out))
    _refuse_foreign(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        left = _sweep(out, usable)
        folder = left or Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise ValueError(f"cannot write beside {out}: {error.strerror}; choose another --out") from None
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.chmod(0o777 & ~_umask())
        yield folder
        _sync(folder)
        _replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _prefix(out: Path) -> str:
    return f".{out.name}.preparing-"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _refuse_foreign(out: Path) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or not out.is_dir():
        raise ValueError(f"--out {out} is not a folder; give a new folder or a prepared data set to replace")
    if any(out.iterdir()) and not all((out / marker).is_file() for marker in MARKERS):
        raise ValueError(
            f"--out {out} holds files but is not a prepared data set, and is left alone; give a new folder"
        )


def _sweep(out: Path, usable: Callable[[Path], bool]) -> Path | None:
    """Delete what killed runs left, but for one that is usable; a folder whose lock is held is a living run's."""
    kept = None
    for folder in out.parent.glob(f"{_prefix(out)}*"):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{out} is being prepared by another process; wait for it or choose another --out"
            ) from None
        finally:
            os.close(descriptor)
        # Without an exchange in the file system, a run killed between its two renames left the old data set here.
        if not out.exists() and folder.name.endswith(".replaced") and all((folder / m).is_file() for m in MARKERS):
            folder.rename(out)
        elif kept is None and usable(folder):
            kept = folder
        else:
            shutil.rmtree(folder)
    return kept


def _sync(folder: Path) -> None:
    """Push every file and folder to the disk before the switch names them good."""
    for root, _, names in os.walk(folder):
        for path in [*(os.path.join(root, name) for name in names), root]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _replace(folder: Path, out: Path) -> None:
    """Put ``folder`` in the place of ``out``; afterwards ``folder`` is the old data set or nothing."""
    if not out.exists():
        folder.rename(out)
    elif not _exchange(folder, out):
        old = folder.with_name(f"{folder.name}.replaced")
        out.rename(old)
        folder.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    descriptor = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders atomically; False where kernel or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(b))
