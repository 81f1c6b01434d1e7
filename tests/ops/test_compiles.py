"""Every kernel compiles for the GPUs that it is for, on machines without one, too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("capability", "shared_memory", "dtypes"),
    [(80, 163 << 10, ["bfloat16"]), (90, 227 << 10, ["bfloat16", "float32", "float16"])],
)
def test_every_kernel_compiles(capability: int, shared_memory: int, dtypes: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("compile_kernels.py")), str(capability), *dtypes]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [line.split() for line in done.stdout.splitlines()]
    for module, name, dtype, shared in seen:
        assert int(shared) <= shared_memory, (module, name, dtype)
    written = {
        (".".join(path.relative_to(ROOT / "src").with_suffix("").parts), name)
        for path in (ROOT / "src" / "laser" / "ops").rglob("*.py")
        for name in re.findall(r"^@triton\.jit.*\ndef (\w+_kernel)\(", path.read_text(), re.MULTILINE)
    }
    assert {(module, name) for module, name, *_ in seen} == written
