"""Contracts that import-linter cannot state: subpackages of other projects, and what a fresh process loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "laser"
DISTRIBUTED = ("torch.distributed", "torchrec.distributed")


def imported(path: Path) -> set[str]:
    """Full names of all modules and members that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ["model", "data", "ops", "batch.py", "seqvault", "report"])
def test_only_train_knows_other_processes(room: str) -> None:
    files = [SOURCE / room] if room.endswith(".py") else sorted((SOURCE / room).rglob("*.py"))
    assert files
    for file in files:
        used = {name for name in imported(file) if name.startswith(DISTRIBUTED)}
        assert not used, f"{file} imports {used}"


@pytest.mark.parametrize("module", ["laser", "laser.schema", "laser.seqvault", "laser.cli", "data_prep.cli"])
def test_a_fresh_import_loads_no_torch(module: str) -> None:
    check = f"import sys, {module}; sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'torchrec')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
