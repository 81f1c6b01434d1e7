"""Checks that torch, torchrec and fbgemm-gpu match before anything of torchrec is imported.

Their wheels name each other without versions, so an installer happily combines builds that cannot load.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TRIPLES = {"2.13": ("1.8", "1.8"), "2.12": ("1.7", "1.7"), "2.11": ("1.6", "1.6")}
"""torch -> (torchrec, fbgemm-gpu), each as major.minor."""
FBGEMM_NAMES = ("fbgemm-gpu", "fbgemm-gpu-cpu", "fbgemm_gpu", "fbgemm_gpu-cpu")


def installed(*names: str) -> str | None:
    """Version of the first of these distributions that is installed, without a local part such as ``+cpu``."""
    for name in names:
        try:
            return version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    return None


def recorded(*names: str) -> dict[str, str]:
    """Versions as a file records them; "unknown" for what is not installed, as when run from a source tree."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _minor(found: str | None) -> str | None:
    return ".".join(found.split(".")[:2]) if found else None


def triple() -> dict[str, str | None]:
    """Versions found of the three packages that must match."""
    return {"torch": installed("torch"), "torchrec": installed("torchrec"), "fbgemm-gpu": installed(*FBGEMM_NAMES)}


def triple_problem() -> str | None:
    """One sentence about what does not match and its cure, or ``None``."""
    found = triple()
    listed = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
    cure = "run `make env`, or install one triple as the README's section Installation says"
    if (torch_minor := _minor(found["torch"])) not in TRIPLES:
        return f"LASER needs torch {' or '.join(sorted(TRIPLES))}, found {listed}; {cure}"
    torchrec, fbgemm = TRIPLES[torch_minor]
    if (_minor(found["torchrec"]), _minor(found["fbgemm-gpu"])) != (torchrec, fbgemm):
        return f"torch {found['torch']} needs torchrec {torchrec} and fbgemm-gpu {fbgemm}, found {listed}; {cure}"
    return None


def check_triple() -> None:
    """Refuse a mismatched triple.

    Raises:
        ImportError: with one sentence that names what was found and the cure.
    """
    if problem := triple_problem():
        raise ImportError(problem)


def code_versions() -> dict[str, str | None]:
    """Of this project, its commit if it runs from a repository, and of what figures depend on."""
    names = ("laser-ctr", "torch", "torchrec", "lightning", "numpy")
    found = {name: installed(name) for name in names}
    return {**found, "python": ".".join(map(str, sys.version_info[:3])), "commit": commit()}


def commit() -> str | None:
    """Commit that the code was run from, with ``+`` when files were changed since; None outside of a repository."""
    here = Path(__file__).parent
    commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(here), *one], capture_output=True, text=True, check=True, timeout=20
            ).stdout
            for one in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+" if changes.strip() else "")
