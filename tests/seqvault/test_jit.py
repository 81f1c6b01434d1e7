"""Compiled kernels that are kept on disk are those of the present source, wherever a process was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CALL = """
import os, sys
from numba.core import caching

if sys.argv[1] == "die":
    caching.IndexDataCacheFile._save_data = lambda self, name, data: os._exit(9)  # killed before the code is written
sys.path.insert(0, sys.argv[2])
import counting

print(counting.answer(1))
"""


def call(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-c", CALL, how, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def write(folder: Path, answer: int) -> None:
    source = f"from laser.seqvault.jit import kernel\n\n@kernel\ndef answer(value):\n    return value * 0 + {answer}\n"
    (folder / "counting.py").write_text(source)


def test_a_killed_process_leaves_no_older_code_behind(tmp_path: Path) -> None:
    write(tmp_path, 1)
    assert call(tmp_path, "live").stdout == "1\n"
    write(tmp_path, 22)
    assert call(tmp_path, "die").returncode == 9
    assert call(tmp_path, "live").stdout == "22\n"
    files = len(list((tmp_path / "cache").rglob("*.nbc")))
    assert call(tmp_path, "live").stdout == "22\n"
    assert len(list((tmp_path / "cache").rglob("*.nbc"))) == files  # found on disk, not compiled again
