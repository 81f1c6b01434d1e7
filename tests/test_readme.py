"""What the README shows works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_examples_print_what_their_comments_say(code: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"print\(.*\)\s+# (.*)", code)
    assert done.stdout.splitlines() == said


def test_files_that_it_names_exist() -> None:
    named = re.findall(r"`((?:conf|docs|data_prep|benchmarks)/[\w./-]+)`", README)
    made = {"conf/mine.yaml", "conf/prep/mine.yaml", "conf/overlay.yaml"}
    missing = [name for name in named if name not in made and not (ROOT / name).exists()]
    assert named
    assert not missing
