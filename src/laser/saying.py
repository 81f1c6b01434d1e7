"""What all processes of one launch have to say to the user is said once a machine, by the first of them.

While it runs, a process of a launch has a file with its number in the launch's folder among temporary files; what was
said has one there, too. The last process to leave removes the folder. Folders whose processes were all killed are
removed by the next launch.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

SAID = "LASER_SAID"
"""Environment variable with a name that all processes of one launch share."""
PREFIX = "laser-said-"


@contextmanager
def one_of_a_launch() -> Iterator[None]:
    """Take part in a launch for as long as the context lasts."""
    os.environ.setdefault(SAID, name_of_launch())
    join()
    try:
        yield
    finally:
        leave()


def name_of_launch() -> str:
    """A name that only processes have which torchrun or srun started together on this machine, or this one alone.

    The starting process belongs to it: torchrun's own name of a run may be the same for all runs.
    """
    for variable in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"):
        if run := os.environ.get(variable):
            return f"{variable}/{run}/{os.getppid()}"
    return uuid.uuid4().hex


def join() -> None:
    """Let the other processes know of this one; those of launches that are gone are forgotten."""
    folder = _folder()
    for other in folder.parent.glob(f"{PREFIX}*"):
        if not _someone_lives(other):
            _remove(other)
    with suppress(OSError):  # without it, things are said more than once
        folder.mkdir(exist_ok=True)
        (folder / str(os.getpid())).touch()


def leave() -> None:
    """Take this process out; the last one takes everything with it."""
    folder = _folder()
    (folder / str(os.getpid())).unlink(missing_ok=True)
    if not _someone_lives(folder):
        _remove(folder)


def say_once(message: str) -> None:
    """Print to stderr, unless another process of this launch on this machine has printed the same."""
    digest = blake2b(message.encode(), digest_size=12).hexdigest()
    try:
        os.close(os.open(_folder() / f"said-{digest}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    except OSError:
        pass  # better said twice than not at all
    print(message, file=sys.stderr, flush=True)


def _folder() -> Path:
    digest = blake2b(os.environ.get(SAID, "").encode(), digest_size=12).hexdigest()
    return Path(tempfile.gettempdir()) / f"{PREFIX}{digest}"


def _someone_lives(folder: Path) -> bool:
    """Whether a process of this launch runs."""
    try:
        return any(Path(f"/proc/{each.name}").exists() for each in folder.iterdir() if each.name.isdigit())
    except OSError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
